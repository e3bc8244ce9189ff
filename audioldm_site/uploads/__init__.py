"""Large files that come in piece by piece and go on where they broke off: the tus protocol, version 1.0.0 (https://tus.io)."""
