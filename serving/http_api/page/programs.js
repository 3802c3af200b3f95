/** Programs that make the call that the page made. */

const TOKEN_VARIABLE = "LISTING_VISION_TOKEN";

/** @param call `url`, `fileNames`, `language`, `hasToken` */
export const PROGRAMS = { curl: writeCurl, python: writePython, node: writeNode };

function quoteForShell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A string literal of both Python and JavaScript, in ASCII but for what JSON leaves as it is. */
function quote(text) {
  return JSON.stringify(text);
}

function writeCurl({ url, fileNames, language, hasToken }) {
  const lines = ["curl --fail-with-body"];
  if (hasToken) lines.push(`-H "Authorization: Bearer $${TOKEN_VARIABLE}"`);
  for (const name of fileNames) lines.push(`-F ${quoteForShell(`photos=@"${name.replace(/["\\]/g, "\\$&")}"`)}`);
  lines.push(`-F language_code=${language}`, quoteForShell(url));
  return lines.join(" \\\n  ");
}

function writePython({ url, fileNames, language, hasToken }) {
  return `${hasToken ? "import os\n\n" : ""}import requests  # pip install requests

names = [${fileNames.map(quote).join(", ")}]
response = requests.post(
    ${quote(url)},
    files=[("photos", open(name, "rb")) for name in names],
    data={"language_code": "${language}"},${hasToken ? `\n    headers={"Authorization": f"Bearer {os.environ['${TOKEN_VARIABLE}']}"},` : ""}
    timeout=10,
)
response.raise_for_status()
print(response.json())
`;
}

function writeNode({ url, fileNames, language, hasToken }) {
  return `import { readFileSync } from "node:fs";

const form = new FormData();
for (const name of [${fileNames.map(quote).join(", ")}]) {
  form.append("photos", new Blob([readFileSync(name)]), name);
}
form.append("language_code", "${language}");
const response = await fetch(${quote(url)}, {
  method: "POST",
  body: form,${hasToken ? `\n  headers: { Authorization: \`Bearer \${process.env.${TOKEN_VARIABLE}}\` },` : ""}
});
if (!response.ok) throw new Error(await response.text());
console.log(JSON.stringify(await response.json()));
`;
}
