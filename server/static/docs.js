// The API reference: swagger-ui over this server's own OpenAPI document, grouped by dialect.

window.addEventListener("DOMContentLoaded", () => {
  globalThis.SwaggerUIBundle({
    url: new URL("openapi.json", document.baseURI).href,
    domNode: document.getElementById("reference"),
    deepLinking: true,
    docExpansion: "none", // the groups are the table of contents
    filter: true,
    defaultModelsExpandDepth: -1, // every schema stands where it is used
    displayRequestDuration: true,
    validatorUrl: null, // or a badge would be asked for elsewhere
    syntaxHighlight: { activated: true },
  });
});
