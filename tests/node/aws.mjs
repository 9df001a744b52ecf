// Prints the credentials that AWS's own SDK finds, by its default chain: a token for a web identity, or a `credential_process`.
import { STSClient } from '@aws-sdk/client-sts';

const { accessKeyId, secretAccessKey, sessionToken, expiration } = await new STSClient({}).config.credentials();
console.log(JSON.stringify({ accessKeyId, secretAccessKey, sessionToken, expiration }));
