// Passkeys: what an authenticator answers is put into the form that asked for it, and the form is sent.

const known = globalThis.PublicKeyCredential?.parseRequestOptionsFromJSON;

async function answerOf(form) {
  const text = form.dataset.options ?? (await ask(form));
  const options = JSON.parse(text);
  const credential =
    form.dataset.passkey === "create"
      ? await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) })
      : await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) });
  return JSON.stringify(credential.toJSON());
}

async function ask(form) {
  const answer = await fetch(form.dataset.ask, { method: "POST", headers: { "X-CSRFToken": form.csrf_token.value } });
  if (!answer.ok) throw new Error("The portal did not answer. Try again.");
  return answer.text();
}

for (const form of known ? document.querySelectorAll("form[data-passkey]") : []) {
  const [button, problem] = [form.querySelector("button"), form.querySelector("[data-problem]")];
  button.hidden = false;
  form.addEventListener("submit", async (event) => {
    if (form.credential.value) return;
    event.preventDefault();
    problem.hidden = true;
    try {
      form.credential.value = await answerOf(form);
      form.requestSubmit();
    } catch (error) {
      problem.textContent = error.name === "NotAllowedError" ? "No passkey answered. Try again, or use another way." : error.message;
      problem.hidden = false;
    }
  });
}
