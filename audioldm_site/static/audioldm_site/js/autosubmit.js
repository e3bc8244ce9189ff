/* form[data-autosubmit]: a changed select sends the form; without JavaScript its button does. */
document.addEventListener("change", (event) => {
  const target = event.target;
  if (target instanceof HTMLSelectElement) /** @type {HTMLFormElement | null} */ (target.closest("form[data-autosubmit]"))?.requestSubmit();
});
