/* What every page can do. Each behaviour finds its elements by data-*. */
import "./confirm.js";
import "./copy.js";
import "./autosubmit.js";
import "./dock.js";
import "./messages.js";
import "./moments.js";
import "./quiet_forms.js";
import "./refresh.js";
import "./sound.js";
