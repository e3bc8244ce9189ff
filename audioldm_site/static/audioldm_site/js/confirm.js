/* form[data-confirm] or button[data-confirm]: asks before something that cannot be taken back. */
document.addEventListener("submit", (event) => {
  const form = /** @type {HTMLElement} */ (event.target);
  const question = event.submitter?.getAttribute("data-confirm") ?? form.getAttribute("data-confirm");
  if (question && !window.confirm(question)) event.preventDefault();
});
