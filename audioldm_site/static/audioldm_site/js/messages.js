/* [data-fragment="messages"]: good news goes away by itself; warnings and errors stay. */
const SHOWN_MS = 7_000;

function dismissLater() {
  for (const message of document.querySelectorAll('[data-fragment="messages"] :is(.notice-success, .notice-info):not([data-leaving])')) {
    message.setAttribute("data-leaving", "");
    setTimeout(() => message.remove(), SHOWN_MS);
  }
}

dismissLater();
document.addEventListener("fragmentchange", dismissLater);
