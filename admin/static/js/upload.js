// Uploading a file by choosing or dropping it, with progress; the form works without this script, too.
const form = document.getElementById("upload");

function show(problem) {
  const place = form.querySelector("#upload-error");
  place.textContent = problem;
  place.hidden = !problem;
}

function busy(isBusy) {
  form.querySelector(".uploading").hidden = !isBusy;
  form.querySelector("button").disabled = isBusy;
}

function upload(file) {
  show("");
  if (file.size > Number(form.dataset.maxBytes)) {
    show(form.dataset.tooLarge);
    return;
  }
  // fetch tells nothing of the progress of what it sends.
  const request = new XMLHttpRequest();
  request.open("POST", form.action);
  request.setRequestHeader("X-Requested-With", "fetch");
  request.setRequestHeader("Content-Type", "text/csv");
  request.responseType = "json";
  request.upload.addEventListener("progress", (event) => {
    const share = event.total ? Math.round((100 * event.loaded) / event.total) : 0;
    form.querySelector("#upload-progress").value = share;
    form.querySelector("#upload-share").textContent = `${share} %`;
  });
  request.addEventListener("load", () => {
    if (request.status === 200 && request.response?.location) {
      location.assign(request.response.location);
      return;
    }
    busy(false);
    show(request.response?.error || form.dataset.lost);
  });
  request.addEventListener("error", () => {
    busy(false);
    show(form.dataset.lost);
  });
  busy(true);
  request.send(file);
}

if (form) {
  form.addEventListener("submit", (event) => {
    const file = form.elements.file.files[0];
    if (!file) return;
    event.preventDefault();
    upload(file);
  });
  form.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) upload(file);
  });
}
