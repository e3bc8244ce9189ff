/* form[data-confirm] or button[data-confirm]: asks before something that cannot be taken back. */
document.addEventListener("submit", (event) => {
  const submitter = event.submitter?.dataset.confirm;
  const question = submitter ?? /** @type {HTMLElement} */ (event.target).dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});
