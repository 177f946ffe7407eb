// An OpenID provider for tests, run as `node provider.mjs MODULE PORT PORTAL_ORIGIN CLIENT_SECRET`: any name signs in, groups come from the name.

const [, , module, port, portal, clientSecret] = process.argv;
const { Provider } = await import(module);
const issuer = `http://localhost:${port}`;

const accountOf = (sub) => ({
  accountId: sub,
  claims: () => ({
    sub, preferred_username: sub.split("+")[0], email: `${sub.split("+")[0]}@provider.example`, groups: sub.split("+").slice(1),
  }),
});

const provider = new Provider(issuer, {
  clients: [{
    client_id: "portal", client_secret: clientSecret, redirect_uris: [`${portal}/sso/staff/callback`],
    post_logout_redirect_uris: [`${portal}/login`], backchannel_logout_uri: `${portal}/sso/staff/logout`, backchannel_logout_session_required: true,
  }],
  claims: { openid: ["sub"], profile: ["preferred_username"], email: ["email"], groups: ["groups"] },
  conformIdTokenClaims: false,
  scopes: ["openid", "profile", "email", "groups"],
  findAccount: (_context, sub) => accountOf(sub),
  cookies: { keys: ["only-for-tests"] },
  pkce: { required: () => true },
  features: { backchannelLogout: { enabled: true }, devInteractions: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  // The portal is on loopback, which the provider's own guard against such addresses would not let it tell.
  fetch: (url, { dispatcher: _guard, ...options }) => globalThis.fetch(url, options),
  ttl: { Session: 3600, Grant: 3600, Interaction: 600, AccessToken: 600, IdToken: 600 },
});
provider.on("backchannel.error", (_context, error) => console.error(error));
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
