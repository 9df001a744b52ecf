for (const link of document.querySelectorAll("a[data-return]")) link.href += encodeURIComponent(location.hash);
const next = document.querySelector("a[data-next]");
if (next) location.replace(next.href);
