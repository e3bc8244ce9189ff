/* A page that becomes another one when its job has finished: loaded anew as soon as the drawn status says so. */
const status = document.querySelector("[data-fragment=status]");
if (status) new MutationObserver(() => status.querySelector(".status-succeeded") && location.reload()).observe(status.parentElement ?? status, { childList: true, subtree: true });
