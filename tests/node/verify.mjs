// Verifies a token of Doorward with a library that is not its own, by the published metadata and keys alone.
// usage: node verify.mjs PORT ISSUER AUDIENCE TOKEN     prints the claims and the header's `typ` as JSON
import http from 'node:http';
import { createLocalJWKSet, jwtVerify } from 'jose';

const [port, issuer, audience, token] = process.argv.slice(2);
const host = new URL(issuer).host;

const get = (path) => new Promise((resolve, reject) => {
  http.get({ host: '127.0.0.1', port, path, headers: { host } }, (response) => {
    let body = '';
    response.on('data', (part) => { body += part; });
    response.on('end', () => (response.statusCode === 200
      ? resolve(JSON.parse(body))
      : reject(new Error(`${path}: ${response.statusCode} ${body}`))));
  }).on('error', reject);
});

for (const path of ['/.well-known/openid-configuration', '/.well-known/oauth-authorization-server']) {
  const metadata = await get(path);
  if (metadata.issuer !== issuer) throw new Error(`${path} is of ${metadata.issuer}`);
  const keys = createLocalJWKSet(await get(new URL(metadata.jwks_uri).pathname));
  const options = { issuer, audience, typ: 'at+jwt', algorithms: ['ES256'], requiredClaims: ['sub', 'client_id', 'iat', 'exp', 'jti'] };
  const { payload, protectedHeader } = await jwtVerify(token, keys, options);
  if (path.endsWith('server')) console.log(JSON.stringify({ ...payload, typ: protectedHeader.typ }));
  await jwtVerify(token, keys, { ...options, audience: 'https://other.test' }).then(
    () => { throw new Error('it is taken for another audience'); },
    (error) => { if (error.code !== 'ERR_JWT_CLAIM_VALIDATION_FAILED') throw error; },
  );
}
