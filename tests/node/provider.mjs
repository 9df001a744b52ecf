// The certified `oidc-provider` for tests. One argument, JSON: {"redirectUris": [...], "postLogoutRedirectUris": [...],
// "port": 0, "rotate": false}. Prints {"issuer": "http://127.0.0.1:PORT"} once it listens; ends with its standard input.
//
// With `rotate`, each refresh gives a new refresh token, and one that comes twice revokes its grant. `GET /tests/refreshes`
// tells how many refreshes there were, as {"granted": 0, "refused": 0}; between a POST to `/tests/hold` and one to
// `/tests/release` none is answered.
//
// With `backchannelLogoutUri` it tells of a logout there, by way of the back channel.
//
// It exchanges tokens (RFC 8693) that `https://doorward.test` has signed for it: `GET /tests/trust/PORT` tells where the keys of
// that are. Who has sent something else is refused.
//
// `client` are further settings of the client `doorward`; those that are POSTed to `/tests/client` take their place at once. One that is
// null is taken away.
// `federated`, {"issuer": "...", "subject": "...", "audience": "..."}, is whose assertions stand for that client, as at Entra ID:
// they are verified with the keys at `ISSUER/jwks`.
//
// Clients: `doorward` (code flow, introspection), `bot` (client credentials, token exchange). Anybody may log in with any password; who
// is called `alice` is in the group `developers`, `bob` also in `release-managers`. With the resource
// `https://doorward.test` access tokens are JWTs (RFC 9068) for that audience, without it they are opaque.
import assert from 'node:assert/strict';
import http from 'node:http';
import { createLocalJWKSet, decodeJwt, jwtVerify } from 'jose';
import Provider, { errors } from 'oidc-provider';

const options = JSON.parse(process.argv[2] ?? '{}');
const AUDIENCE = 'https://doorward.test';
const groups = { alice: ['developers'], bob: ['developers', 'release-managers'] };

const refreshes = { granted: 0, refused: 0 };
// What refreshes wait for before they are answered.
let released = Promise.resolve();
let release = () => {};

const ofTests = {
  '/tests/refreshes': () => refreshes,
  '/tests/hold': () => {
    released = new Promise((resolve) => {
      release = resolve;
    });
  },
  '/tests/release': () => release(),
};

// Where the keys of Doorward are, once somebody has told.
let trusted;
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const TOKEN_TYPE = 'urn:ietf:params:oauth:token-type';

const keysOfDoorward = () => new Promise((resolve, reject) => {
  http.get({ host: '127.0.0.1', port: trusted, path: '/oauth2/jwks', headers: { host: 'doorward.test' } }, (response) => {
    let body = '';
    response.on('data', (part) => { body += part; });
    response.on('end', () => resolve(createLocalJWKSet(JSON.parse(body))));
  }).on('error', reject);
});

const exchange = (provider) => async (ctx) => {
  const { params, client } = ctx.oidc;
  if (params.subject_token_type !== `${TOKEN_TYPE}:jwt` || params.requested_token_type !== `${TOKEN_TYPE}:access_token`) {
    throw new errors.InvalidRequest('other types are expected');
  }
  let claims;
  try {
    ({ payload: claims } = await jwtVerify(params.subject_token, await keysOfDoorward(), {
      issuer: AUDIENCE,
      audience: provider.issuer,
      typ: 'JWT',
      algorithms: ['ES256'],
      maxTokenAge: '5m',
      requiredClaims: ['sub', 'iat', 'exp', 'jti', 'origin'],
    }));
  } catch (error) {
    throw new errors.InvalidGrant(error.message);
  }
  const token = new provider.AccessToken({ accountId: claims.origin.sub, client, scope: params.scope, gty: 'exchange' });
  ctx.body = {
    access_token: await token.save(),
    issued_token_type: `${TOKEN_TYPE}:access_token`,
    token_type: 'Bearer',
    expires_in: token.expiration,
    scope: token.scope,
  };
};

const withoutNulls = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value !== null));

// What the client `doorward` is, without and with what it proves itself by.
const doorward = (further) => withoutNulls({
  client_id: 'doorward',
  client_secret: 'doorward-secret-of-the-tests',
  redirect_uris: options.redirectUris ?? ['http://localhost/oauth2/callback'],
  post_logout_redirect_uris: options.postLogoutRedirectUris ?? [],
  response_types: ['code'],
  grant_types: ['authorization_code', 'refresh_token'],
  // For a question that accepts it (RFC 9701).
  introspection_signed_response_alg: 'RS256',
  ...(options.backchannelLogoutUri && {
    backchannel_logout_uri: options.backchannelLogoutUri,
    backchannel_logout_session_required: true,
  }),
  ...further,
});

const bodyOf = async (request) => {
  const parts = [];
  for await (const part of request) {
    parts.push(part);
  }
  return Buffer.concat(parts).toString();
};

// An assertion that somebody else signed is verified here, and becomes the secret that the provider knows.
const federation = async (ctx, next) => {
  const { issuer, subject, audience } = options.federated;
  if (ctx.method !== 'POST' || !ctx.is('application/x-www-form-urlencoded')) {
    return next();
  }
  const form = Object.fromEntries(new URLSearchParams(await bodyOf(ctx.req)));
  ctx.req.body = form;
  if (form.client_assertion && decodeJwt(form.client_assertion).iss === issuer) {
    const keys = createLocalJWKSet(await (await fetch(`${issuer}/jwks`)).json());
    try {
      assert.equal(form.client_assertion_type, 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer');
      assert.equal(form.client_id, 'doorward');
      await jwtVerify(form.client_assertion, keys, { issuer, subject, audience, requiredClaims: ['exp'] });
    } catch (error) {
      ctx.status = 401;
      ctx.body = { error: 'invalid_client', error_description: error.message };
      return undefined;
    }
    delete form.client_assertion;
    delete form.client_assertion_type;
    form.client_secret = doorward(options.client).client_secret;
  }
  return next();
};

const server = http.createServer();
server.listen(options.port ?? 0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: 'bot',
        client_secret: 'bot-secret-of-the-tests',
        redirect_uris: [],
        response_types: [],
        grant_types: ['client_credentials', EXCHANGE],
      },
    ],
    // Claims of a scope other than `openid` are told at userinfo alone, unless it is told otherwise.
    claims: options.userinfoAlone ? { profile: ['groups'] } : { openid: ['sub', 'groups', 'email', 'email_verified'] },
    conformIdTokenClaims: options.userinfoAlone ?? false,
    findAccount: (_, sub) => ({
      accountId: sub,
      claims: () => ({ sub, groups: groups[sub] ?? [], email: `${sub}@doorward.test`, email_verified: true }),
    }),
    scopes: ['openid', 'offline_access', 'tekton:run', 'tekton:deploy'],
    pkce: { required: () => true },
    rotateRefreshToken: options.rotate ?? false,
    // Doorward is on this machine, where the provider's own dispatcher sends nothing.
    fetch: (url, { dispatcher, ...rest }) => fetch(url, rest),
    features: {
      backchannelLogout: { enabled: true },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      jwtIntrospection: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({
          scope: 'tekton:run tekton:deploy',
          audience: AUDIENCE,
          accessTokenFormat: 'jwt',
          accessTokenTTL: options.accessTokenTTL ?? 600,
        }),
      },
    },
    extraTokenClaims: (_, token) => ({ groups: groups[token.accountId] ?? [] }),
    ttl: { AccessToken: options.accessTokenTTL ?? 600, ClientCredentials: options.accessTokenTTL ?? 600 },
    cookies: { keys: ['tests'] },
  });
  const parameters = ['audience', 'resource', 'scope', 'requested_token_type', 'subject_token', 'subject_token_type'];
  provider.registerGrantType(EXCHANGE, exchange(provider), parameters, ['audience', 'resource']);
  const isRefresh = (ctx) => ctx.oidc?.params?.grant_type === 'refresh_token';
  provider.on('grant.success', (ctx) => isRefresh(ctx) && refreshes.granted++);
  provider.on('grant.error', (ctx) => isRefresh(ctx) && refreshes.refused++);
  provider.use(async (ctx, next) => {
    await next();
    if (isRefresh(ctx)) {
      await released;
    }
  });
  if (options.federated) {
    provider.use(federation);
  }
  // Not among the clients above, which cannot change.
  const register = (further) => provider.Client.adapter.upsert('doorward', doorward(further));
  const registered = register(options.client);
  const answer = provider.callback();
  server.on('request', async (request, response) => {
    await registered;
    if (request.url === '/tests/client') {
      await register(JSON.parse(await bodyOf(request)));
      response.end('null');
      return;
    }
    const told = /^\/tests\/trust\/(\d+)$/.exec(request.url);
    const own = told ? () => { [, trusted] = told; } : ofTests[request.url];
    if (own) {
      response.end(JSON.stringify(own() ?? null));
    } else {
      answer(request, response);
    }
  });
  console.log(JSON.stringify({ issuer }));
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
