// Drives a real Chromium through a login. One argument, JSON: {"scenario": NAME, "url": URL, ...}. Prints one JSON
// object with what it saw; any failure ends it with a non-zero status and the reason on standard error.
import { chromium } from 'playwright-core';

const options = JSON.parse(process.argv[2]);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP *.test 127.0.0.1'],
});

async function context(extra = {}) {
  return browser.newContext({ ignoreHTTPSErrors: true, ...extra });
}

// The development interactions of `oidc-provider`: a login form that takes any password, then a consent form.
async function logIn(page, person) {
  await page.waitForSelector('input[name=login]');
  await page.fill('input[name=login]', person);
  await page.fill('input[name=password]', 'any');
  await Promise.all([page.waitForNavigation(), page.click('button[type=submit]')]);
  if (await page.$('form[action*="/interaction/"] button[type=submit]')) {
    await Promise.all([page.waitForNavigation(), page.click('button[type=submit]')]);
  }
}

const scenarios = {
  // Log in, see who one is, sign out, and be out.
  async login() {
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(options.url + (options.path ?? '/'));
    await logIn(page, options.person ?? 'alice');
    const landed = page.url();
    const body = await page.textContent('body');
    const cookies = (await ctx.cookies()).filter((cookie) => cookie.name.startsWith('__Host-doorward'));
    const fetched = await page.evaluate(async () => {
      const answer = await fetch('/echo', { method: 'POST', body: 'x' });
      return answer.status;
    });
    await page.goto(options.url + '/.doorward/whoami');
    const whoami = await page.textContent('main');
    await page.goto(options.url + '/oauth2/sign_out');
    await Promise.all([page.waitForNavigation(), page.click('form button[type=submit]')]);
    if (!page.url().startsWith(options.url)) {
      // The provider asks whether its own session is to end too.
      await Promise.all([page.waitForURL((url) => url.href.startsWith(options.url)), page.click('button[name=logout]')]);
    }
    const signedOut = page.url();
    const after = await ctx.request.get(options.url + '/', { maxRedirects: 0, headers: { 'Sec-Fetch-Mode': 'cors' } });
    // The old cookie, replayed, must be worth nothing.
    const cookie = cookies.map((cookie) => `${cookie.name}=${cookie.value}`).join('; ');
    const replayed = await (await context()).request.get(options.url + '/', { maxRedirects: 0, headers: { cookie, 'Sec-Fetch-Mode': 'cors' } });
    return { landed, body, whoami, cookies, fetched, signedOut, after: after.status(), replayed: replayed.status() };
  },

  // Without JavaScript, to an address with a query.
  async withoutScript() {
    const page = await (await context({ javaScriptEnabled: false })).newPage();
    await page.goto(options.url + options.path);
    await logIn(page, 'alice');
    return { landed: page.url() };
  },

  // Five tabs that are opened at once and logged in one after the other; then all of them anew with the session.
  async tabs() {
    const ctx = await context();
    const pages = await Promise.all([1, 2, 3, 4, 5].map(() => ctx.newPage()));
    const address = (index) => `${options.url}/tab${index}?of=5#/place/${index}`;
    await Promise.all(pages.map((page, index) => page.goto(address(index)).then(() => page.waitForSelector('input[name=login]'))));
    for (const page of pages) {
      await logIn(page, 'alice');
    }
    const landed = pages.map((page) => page.url());
    await Promise.all(pages.map((page) => page.reload()));
    return { landed, expected: pages.map((_, index) => address(index)), reloaded: pages.map((page) => page.url()) };
  },

  // A form whose session has ended when it is sent, by a person and by a script.
  async form() {
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(options.url + '/form?env=prod');
    await logIn(page, 'alice');
    await ctx.clearCookies({ name: '__Host-doorward' });
    const fetched = await page.evaluate(async () => {
      const answer = await fetch('/deploy', { method: 'POST', body: 'x' });
      return { status: answer.status, type: answer.headers.get('content-type'), body: await answer.json() };
    });
    const socket = await page.evaluate(() => new Promise((done) => {
      const socket = new WebSocket(location.origin.replace('http', 'ws') + '/stream');
      socket.onopen = () => done('open');
      socket.onerror = () => done('refused');
    }));
    await page.evaluate(() => {
      const form = document.createElement('form');
      form.method = 'post';
      form.action = '/deploy';
      document.body.append(form);
      form.submit();
    });
    await page.waitForURL('**/oauth2/unsent?*');
    const told = await page.textContent('main');
    await Promise.all([page.waitForURL('**/form?env=prod'), page.click('a.button')]);
    return { fetched, socket, told, back: page.url() };
  },

  // An answer of the provider in a browser that did not begin, and again in the one that did.
  async elsewhere() {
    const ctx = await context();
    const page = await ctx.newPage();
    const answers = [];
    page.on('request', (request) => request.url().includes('/oauth2/callback?') && answers.push(request.url()));
    await page.goto(options.url + '/runs');
    await logIn(page, 'alice');
    const other = await (await context()).newPage();
    await other.goto(answers[0]);
    const inAnother = await other.textContent('main');
    await page.goto(answers[0]);
    const again = await page.textContent('main');
    await Promise.all([page.waitForURL(options.url + '/runs'), page.click('a.button')]);
    return { inAnother, again, wentOn: page.url() };
  },

  // A provider that is not there yet: the page, then the button on it until the provider is.
  async provider() {
    const page = await (await context()).newPage();
    await page.goto(options.url + '/runs');
    await page.waitForURL('**/oauth2/start?*');
    const told = await page.textContent('main');
    process.stdout.write('away\n');
    await new Promise((go) => process.stdin.once('data', go));
    process.stdin.pause();
    while (page.url().startsWith(options.url)) {
      await Promise.all([page.waitForNavigation(), page.click('a.button')]);
    }
    await logIn(page, 'alice');
    return { told, landed: page.url() };
  },

  // Where each return address ends, in a browser that is new each time.
  async returnAddresses() {
    const ended = new Array(options.addresses.length);
    let next = 0;
    const worker = async () => {
      const ctx = await context();
      const page = await ctx.newPage();
      while (next < ended.length) {
        const index = next++;
        await ctx.clearCookies();
        const begin = `${options.url}/oauth2/${options.begin}?rd=${encodeURIComponent(options.addresses[index])}`;
        await page.goto(begin, { waitUntil: 'commit' });
        await page.waitForURL((url) => !url.pathname.startsWith('/oauth2/'), { waitUntil: 'commit' });
        ended[index] = page.url();
      }
    };
    await Promise.all([1, 2, 3, 4].map(worker));
    return { ended };
  },

  // The pages that people see, at the width of a desktop and of a phone: which of them scroll sideways.
  async widths() {
    const sideways = [];
    for (const width of [1280, 360]) {
      const ctx = await context({ viewport: { width, height: 800 }, colorScheme: width === 360 ? 'dark' : 'light' });
      const page = await ctx.newPage();
      const look = async (name) => {
        if (await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth)) {
          sideways.push(`${name} at ${width}`);
        }
      };
      await page.goto(options.url + '/');
      await look('the provider');
      await Promise.all([page.waitForURL((url) => url.href.startsWith(options.url)), page.click('button[value=alice]')]);
      for (const path of ['/', '/.doorward/whoami', '/apis/tekton.dev/v1/namespaces/prod/secrets', '/oauth2/sign_out',
        '/oauth2/callback?state=x&code=y', '/.doorward/nothing', '/oauth2/signed_out']) {
        await page.goto(options.url + path);
        await look(path);
      }
    }
    return { sideways };
  },

  // In and out again without JavaScript.
  async plain() {
    const page = await (await context({ javaScriptEnabled: false })).newPage();
    await page.goto(options.url + '/');
    await Promise.all([page.waitForURL((url) => url.href.startsWith(options.url)), page.click('button[value=bob]')]);
    await page.goto(options.url + '/.doorward/whoami');
    const whoami = await page.textContent('main');
    const denied = await page.goto(options.url + '/apis/tekton.dev/v1/namespaces/prod/secrets');
    const offered = await page.textContent('a.button');
    await page.goto(options.url + '/oauth2/sign_out');
    await Promise.all([page.waitForURL('**/oauth2/signed_out'), page.click('form button[type=submit]')]);
    return { whoami, denied: denied.status(), offered, out: await page.textContent('h1') };
  },

  // The demo's own provider: one click signs in.
  async demo() {
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(options.url + (options.path ?? '/'));
    await Promise.all([page.waitForURL((url) => url.href.startsWith(options.url)), page.click(`button[value=${options.person ?? 'alice'}]`)]);
    const landed = page.url();
    const body = await page.textContent('body');
    const denied = await page.goto(options.url + '/apis/tekton.dev/v1/namespaces/prod/secrets');
    return { landed, body, denied: denied.status(), deniedText: await page.textContent('body') };
  },
};

try {
  console.log(JSON.stringify(await scenarios[options.scenario]()));
} finally {
  await browser.close();
}
