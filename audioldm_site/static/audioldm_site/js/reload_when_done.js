/* A page that becomes another one when its job has finished: loaded anew as soon as the drawn status says so. */
document.addEventListener("fragmentchange", () => {
  if (document.querySelector("[data-fragment=status] .status-succeeded")) location.reload();
});
