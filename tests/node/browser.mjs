// Drives a real Chromium through a login. One argument, JSON: {"scenario": NAME, "url": URL, ...}. Prints one JSON
// object with what it saw; any failure ends it with a non-zero status and the reason on standard error.
import { readFile } from 'node:fs/promises';
import { chromium } from 'playwright-core';

const options = JSON.parse(process.argv[2]);
// How long a step may take on a busy machine; the default is half a minute.
const PATIENCE = 80_000;
const browser = await chromium.launch({
  timeout: PATIENCE,
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP *.test 127.0.0.1', ...options.arguments ?? []],
});

async function context(extra = {}) {
  const made = await browser.newContext({ ignoreHTTPSErrors: true, ...extra });
  made.setDefaultTimeout(PATIENCE);
  return made;
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

// Says `mark` and waits for the test to let the scenario go on.
async function pause(mark) {
  process.stdout.write(`${mark}\n`);
  await new Promise((go) => process.stdin.once('data', go).resume());
  process.stdin.pause();
}

// Holds a page's requests to such an address, also where a redirect leads there, which `page.route` does not see.
async function hold(page, urlPattern) {
  const protocol = await page.context().newCDPSession(page);
  const paused = new Promise((caught) => protocol.once('Fetch.requestPaused', caught));
  await protocol.send('Fetch.enable', { patterns: [{ urlPattern }] });
  const end = async (method, more) => {
    await protocol.send(method, { requestId: (await paused).requestId, ...more });
    await protocol.detach();
  };
  return {
    // The address of the first one.
    address: paused.then(({ request }) => request.url),
    release: () => end('Fetch.continueRequest'),
    drop: () => end('Fetch.failRequest', { errorReason: 'Aborted' }),
  };
}

// Judges pages by axe-core, at both widths and in both schemes, and keeps pictures of them where a folder is named.
class Judge {
  faults = [];
  seen = [];

  static async create(folder) {
    const judge = new Judge();
    judge.folder = folder;
    judge.axe = await readFile(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');
    return judge;
  }

  // The script comes in by the DevTools protocol, which no policy of the page binds.
  async look(page, name) {
    this.seen.push(`${name}: ${await page.textContent('h1')}`);
    await page.evaluate(this.axe);
    for (const [width, colorScheme] of [[1280, 'light'], [1280, 'dark'], [390, 'light'], [390, 'dark']]) {
      await page.setViewportSize({ width, height: 800 });
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      const faults = await page.evaluate(async () => {
        // Contrast cannot be told on a gradient, so each of its two ends is looked at.
        const on = async (ground, options) => {
          document.body.style.background = `var(${ground})`;
          const { violations, incomplete } = await window.axe.run(document, { resultTypes: ['violations'], ...options });
          document.body.style.background = '';
          return [...violations, ...incomplete].map((rule) => `${rule.id}: ${rule.nodes.map((node) => node.html).join(' ')}`);
        };
        const sideways = document.documentElement.scrollWidth > window.innerWidth ? ['it scrolls sideways'] : [];
        const all = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
        return [...sideways, ...await on('--ground', { runOnly: all }), ...await on('--glow', { runOnly: ['color-contrast'] })];
      });
      this.faults.push(...faults.map((fault) => `${name} at ${width}, ${colorScheme}: ${fault}`));
    }
    if (this.folder) {
      await this.keep(page, `${name}.png`, 960, 'light');
      await this.keep(page, `${name}-phone.png`, 390, 'dark');
    }
  }

  async keep(page, file, width, colorScheme) {
    await page.setViewportSize({ width, height: 600 });
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    await page.screenshot({ path: `${this.folder}/${file}`, fullPage: true });
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

  // The page that `doorward login` opens: what it shows, and where the browser ends when it is allowed or cancelled.
  async program() {
    const judge = await Judge.create(options.screenshots);
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(options.url);
    await judge.look(page, 'program');
    const asked = await page.textContent('main');
    if (options.cancel) {
      await Promise.all([page.waitForNavigation(), page.click('a:text-is("Cancel")')]);
    } else {
      await Promise.all([page.waitForNavigation(), page.click('form button[type=submit]')]);
      if (!page.url().startsWith('http://127.0.0.1:') || await page.$('input[name=login]')) {
        await logIn(page, 'alice');
      }
    }
    const ended = page.url();
    await page.waitForSelector('h1');
    await judge.look(page, 'program-done');
    const cookies = (await ctx.cookies()).map((cookie) => cookie.name);
    return { asked, ended, told: await page.textContent('main'), cookies, faults: judge.faults };
  },

  // `doorward login --device`: a code that nobody waits for, then the one that the terminal shows.
  async device() {
    const judge = await Judge.create(options.screenshots);
    const ctx = await context();
    const page = await ctx.newPage();
    const type = async (code) => {
      await page.fill('input[name=code]', code);
      await Promise.all([page.waitForNavigation(), page.click('form button[type=submit]')]);
    };
    await page.goto(options.url);
    await judge.look(page, 'type-code');
    await type('BCDF-GHJK');
    await judge.look(page, 'type-code-again');
    const again = await page.textContent('main');
    await type(options.code);
    await judge.look(page, 'device');
    const asked = await page.textContent('main');
    await Promise.all([page.waitForNavigation(), page.click('.choices button[type=submit]')]);
    await logIn(page, 'alice');
    await page.waitForURL((url) => url.pathname.startsWith('/.doorward/device'));
    await judge.look(page, 'device-done');
    const cookies = (await ctx.cookies()).map((cookie) => cookie.name);
    return { again, asked, told: await page.textContent('main'), cookies, faults: judge.faults };
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

  // Five tabs of one session, loaded at once each time that the test goes on, while the provider keeps whoever refreshes
  // waiting until all of them have asked.
  async stale() {
    const ctx = await context();
    const pages = await Promise.all([1, 2, 3, 4, 5].map(() => ctx.newPage()));
    await pages[0].goto(options.url + '/');
    await logIn(pages[0], 'alice');
    const provider = (path) => fetch(options.provider + path, { method: 'POST' });
    const rounds = [];
    for (let round = 0; round < options.rounds; round++) {
      await pause('grown old');
      await provider('/tests/hold');
      const asked = Promise.all(pages.map((page) => page.waitForRequest('**/tab*')));
      const answers = pages.map((page, index) => page.goto(`${options.url}/tab${index}?round=${round}`));
      await asked;
      await provider('/tests/release');
      rounds.push((await Promise.all(answers)).map((answer) => `${answer.status()} ${new URL(answer.url()).pathname}`));
    }
    return { rounds };
  },

  // A person at the Dashboard of the cluster: what its pages ask for, and what comes of it.
  async board() {
    const { namespace, pod, logged } = options;
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(`${options.url}/#/namespaces/${namespace}/pipelineruns`);
    await logIn(page, 'alice');
    await page.evaluate(async () => {
      window.ask = async (path, method = 'GET', body, type = 'application/json') => {
        const headers = { 'Tekton-Client': 'tektoncd/dashboard', Accept: 'application/json' };
        if (body) headers['Content-Type'] = type;
        const answer = await fetch(path, { method, credentials: 'same-origin', headers, body: body && JSON.stringify(body) });
        const text = await answer.text();
        return { status: answer.status, text, said: text.startsWith('{') ? JSON.parse(text) : null };
      };
      // As the Dashboard opens them: by the origin of the page, and each message is an event.
      window.watch = (path) => {
        const socket = new WebSocket(location.origin.replace('http', 'ws') + path);
        const seen = [];
        socket.onmessage = ({ data }) => seen.push(JSON.parse(data));
        const ended = new Promise((done) => { socket.onclose = ({ code, reason }) => done({ code, reason }); });
        return { seen, ended, open: new Promise((done) => { socket.onopen = done; }) };
      };
    });
    // Its pages write a slash behind the name of a collection, and none behind that of an object.
    const first = await page.evaluate(async ({ namespace, pod, logged }) => {
      const runs = `/apis/tekton.dev/v1/namespaces/${namespace}/pipelineruns/`;
      const properties = (await window.ask('/v1/properties')).said;
      const namespaces = (await window.ask('/api/v1/namespaces/')).status;
      const elsewhere = (await window.ask('/apis/tekton.dev/v1/namespaces/elsewhere/pipelineruns/')).status;
      const { said: list } = await window.ask(runs);
      window.runs = window.watch(`${runs}?watch=true&resourceVersion=${list.metadata.resourceVersion}`);
      await window.runs.open;
      const task = { name: 'only', taskSpec: { steps: [{ name: 'run', image: 'images.test/step', command: ['true'] }] } };
      const started = await window.ask(runs, 'POST', {
        apiVersion: 'tekton.dev/v1', kind: 'PipelineRun', metadata: { name: 'walk', annotations: { hold: 'yes' } },
        spec: { pipelineSpec: { tasks: [task] } },
      });
      const until = async (holds) => {
        for (;;) {
          const found = window.runs.seen.map(({ object }) => object).find(holds);
          if (found) return found;
          await new Promise((go) => setTimeout(go, 50));
        }
      };
      const reason = (run) => run.status?.conditions?.[0]?.reason;
      await until((run) => run.metadata.name === 'walk' && reason(run) === 'Running');
      const cancelled = await window.ask(`${runs}walk`, 'PATCH',
        [{ op: 'replace', path: '/spec/status', value: 'Cancelled' }], 'application/json-patch+json');
      const ended = await until((run) => run.metadata.name === 'walk' && reason(run) === 'Cancelled');
      const deleted = await window.ask(`${runs}walk`, 'DELETE');
      const answer = await fetch(
        `/api/v1/namespaces/${namespace}/pods/${pod}/log?container=main&follow=true&timestamps=true`,
        { headers: { 'Tekton-Client': 'tektoncd/dashboard', Accept: 'text/plain,*/*' } },
      );
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let log = '';
      while (!log.includes(logged.trim())) {
        const { value, done } = await reader.read();
        if (done) break;
        log += value;
      }
      // It goes on until somebody ends it.
      window.log = (async () => {
        try {
          while (!(await reader.read()).done);
          return 'ended';
        } catch (error) {
          return `cut: ${error.name}`;
        }
      })();
      return {
        properties, namespaces, elsewhere, started: started.status, cancelled: cancelled.status, reason: reason(ended),
        deleted: { status: deleted.status, message: deleted.said?.message }, log,
      };
    }, { namespace, pod, logged });
    const other = await ctx.newPage();
    await other.goto(new URL(first.properties.logoutURL, options.url).href);
    const open = await page.evaluate(() => Promise.race([window.log, new Promise((go) => setTimeout(go, 0, 'open'))]));
    await other.click('form button[type=submit]');
    const socket = await page.evaluate(() => window.runs.ended);
    const follow = [open, await page.evaluate(() => window.log)];
    const after = await page.evaluate(async () => (await window.ask('/v1/properties')).status);
    return { ...first, socket, follow, after };
  },

  // A page that needs more of a login: first by a fetch, which is told so, then by going there.
  async step_up() {
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(options.url + '/');
    await logIn(page, 'alice');
    const deploy = () => page.evaluate(async () => {
      const answer = await fetch('/deploy', { method: 'POST', body: 'x' });
      return { status: answer.status, said: answer.status === 200 ? null : await answer.json() };
    });
    const session = async () => (await ctx.cookies()).find((cookie) => cookie.name === '__Host-doorward').value;
    const [before, first] = [await deploy(), await session()];
    await page.goto(options.url + '/deploy?to=production#/runs/7');
    await page.waitForURL((url) => url.pathname === '/deploy');
    return { before, landed: page.url(), cookies: [first, await session()], after: (await deploy()).status };
  },

  // A WebSocket that is open when its session ends: by a logout here, by one at the provider, or by what the test does.
  async socket() {
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(options.url + '/');
    await logIn(page, 'alice');
    const heard = await page.evaluate(() => new Promise((hear, fail) => {
      const socket = new WebSocket(location.origin.replace('http', 'ws') + '/stream');
      socket.onmessage = ({ data }) => hear(data);
      socket.onerror = () => fail(new Error('the WebSocket was refused'));
      window.ended = new Promise((done) => {
        socket.onclose = ({ code, reason, wasClean }) => done({ code, reason, wasClean });
      });
    }));
    const other = await ctx.newPage();
    if (options.by === 'logout') {
      await other.goto(options.url + '/oauth2/sign_out');
      await other.click('form button[type=submit]');
    } else if (options.by === 'provider') {
      await other.goto(options.provider + '/session/end');
      await other.click('button[name=logout]');
    } else {
      await pause('open');
    }
    const ended = await page.evaluate(() => window.ended);
    const after = await page.evaluate(() => new Promise((done) => {
      const socket = new WebSocket(location.origin.replace('http', 'ws') + '/stream');
      socket.onopen = () => done('open');
      socket.onerror = () => done('refused');
    }));
    return { heard, ended, after };
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
    await pause('away');
    while (page.url().startsWith(options.url)) {
      await Promise.all([page.waitForNavigation(), page.click('a.button')]);
    }
    await logIn(page, 'alice');
    return { told, landed: page.url() };
  },

  // A provider that stops and comes back, under a session, and in the middle of the login of another browser.
  async provider_outage() {
    const judge = await Judge.create(options.screenshots);
    const page = await (await context()).newPage();
    await page.goto(options.url + '/runs');
    await logIn(page, 'alice');
    const other = await (await context()).newPage();
    const callback = await hold(other, '*/oauth2/callback?*');
    await other.goto(options.url + '/builds?of=1#/place');
    const loggedIn = logIn(other, 'alice');
    await callback.address;
    await pause('answered');
    const during = [];
    for (let time = 0; time < 3; time++) {
      during.push((await page.goto(options.url + '/runs')).status());
    }
    await pause('goes on');
    await callback.release();
    await loggedIn;
    await judge.look(other, 'provider-away');
    const told = await other.textContent('main');
    // Whoever wants to sign in only now is not sent where nobody is.
    const late = await (await context()).newPage();
    const isTold = (url) => url.pathname === '/oauth2/start';
    do {
      // What was found out a moment ago is believed: then the browser is sent there once more, and shows a page of its own.
      await late.goto(options.url + '/builds?of=2#/place').catch(() => {});
      // It throws where the navigation fails while it waits.
      await late.waitForURL((url) => isTold(url) || url.protocol === 'chrome-error:').catch(() => {});
    } while (!isTold(new URL(late.url())));
    const before = { at: new URL(late.url()).origin, told: await late.textContent('main') };
    await pause('told');
    for (const tab of [other, late]) {
      // That it is away is believed for a second.
      while (await tab.$('body.refused')) {
        await tab.click('a.button');
        await tab.waitForLoadState();
      }
      await logIn(tab, 'alice');
    }
    before.landed = late.url();
    const after = (await page.goto(options.url + '/runs')).status();
    return { during, told, before, landed: other.url(), after, faults: judge.faults };
  },

  // A master of the store that another one takes the place of, while a page asks again and again.
  async failover() {
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(options.url + '/runs?of=1#/place');
    await logIn(page, 'alice');
    const session = async () => (await ctx.cookies()).find((cookie) => cookie.name === '__Host-doorward')?.value;
    const before = await session();
    const ask = () => page.evaluate(async () => (await fetch('/runs')).status);
    const seen = new Set();
    let over = false;
    const told = pause('signed in').then(() => { over = true; });
    while (!over) {
      seen.add(await ask());
    }
    await told;
    let answer;
    do {
      answer = await page.reload();
    } while (answer.status() === 503);
    const back = { status: answer.status(), at: page.url(), kept: await session() === before };
    // The new master is written to as well.
    do {
      await page.goto(options.url + '/oauth2/sign_out');
      await page.click('form button[type=submit]');
      await page.waitForLoadState();
    } while (await session());
    return { seen: [...seen], back, out: (await ctx.request.get(options.url + '/runs', { maxRedirects: 0, headers: { 'Sec-Fetch-Mode': 'cors' } })).status() };
  },

  // A store that stops and comes back, under a session and at a login.
  async store_outage() {
    const judge = await Judge.create(options.screenshots);
    const ctx = await context();
    const page = await ctx.newPage();
    await page.goto(options.url + '/runs?of=1#/place');
    await logIn(page, 'alice');
    const session = async () => (await ctx.cookies()).find((cookie) => cookie.name === '__Host-doorward')?.value;
    const before = await session();
    await pause('signed in');
    let answer;
    do {
      answer = await page.reload();
    } while (answer.status() === 200);
    const away = { status: answer.status(), retryAfter: answer.headers()['retry-after'], told: await page.textContent('main'), kept: await session() === before, at: page.url() };
    await judge.look(page, 'store-away');
    const fetched = await ctx.request.get(options.url + '/runs', { maxRedirects: 0, headers: { 'Sec-Fetch-Mode': 'cors' } });
    const program = { status: fetched.status(), retryAfter: fetched.headers()['retry-after'], reason: (await fetched.json()).reason };
    const other = await (await context()).newPage();
    await other.goto(options.url + '/builds');
    await logIn(other, 'alice');
    await other.waitForURL(options.url + '/oauth2/**');
    const login = await other.textContent('main');
    await judge.look(other, 'sign-in-store-away');
    await pause('away');
    do {
      answer = await page.reload();
    } while (answer.status() === 503);
    while (new URL(other.url()).pathname !== '/builds') {
      await other.click('a.button');
      await other.waitForLoadState();
    }
    return { away, program, login, back: answer.status(), at: page.url(), kept: await session() === before, landed: other.url(), faults: judge.faults };
  },

  // A sibling host that sets cookies for the parent of both, in every form that a browser might let pass, and too many of them.
  async tossing() {
    const judge = await Judge.create(options.screenshots);
    const { url, evil } = options;
    const SESSION = '__Host-doorward';
    const sessionOf = async (ctx) => (await ctx.cookies(url)).filter((cookie) => cookie.name === SESSION).map((cookie) => cookie.value);
    const who = async (page) => {
      // A connection that is just being closed, as somebody asked too much on it, may be used once more.
      const ask = () => page.goto(url + '/.doorward/whoami');
      const answer = await ask().catch((error) => {
        if (!`${error}`.includes('ERR_CONNECTION_CLOSED')) throw error;
        return ask();
      });
      return answer.status() === 200 ? page.textContent('h1') : `${answer.status()}`;
    };
    // What the attacker has: a session, and a login that the provider has answered.
    const theirs = await context();
    const attacker = await theirs.newPage();
    await attacker.goto(url + '/');
    await logIn(attacker, 'mallory');
    const callback = await hold(attacker, '*/oauth2/callback?*');
    attacker.goto(url + '/oauth2/start').catch(() => {});
    const answer = await callback.address;
    await callback.drop();
    const loot = (await theirs.cookies(url)).filter((cookie) => cookie.name.startsWith(SESSION));
    const forms = loot.flatMap(({ name, value }) => [
      ...['/', '/runs', '/oauth2', '/.doorward/whoami'].map((path) => `${name}=${value}; Domain=apps.test; Path=${path}`),
      `${name}=${value}; Domain=apps.test; Path=/; Secure`,
      `${name}=${value}; Domain=dash.apps.test; Path=/; Secure`,
      `${name}=${value}; Path=/; Secure`,
      `${name.toLowerCase()}=${value}; Domain=apps.test; Path=/`,
      `=${name}=${value}; Domain=apps.test; Path=/`,
      ` ${name} = ${value}; Domain=apps.test; Path=/`,
      `\u2000${name}=${value}; Domain=apps.test; Path=/`,
      `\u00a0${name}=${value}; Domain=apps.test; Path=/`,
      `${name}\u2000=${value}; Domain=apps.test; Path=/`,
      `$Version=1,${name}=${value}; Domain=apps.test; Path=/`,
      `neighbour="${name}=${value}; Domain=apps.test; Path=/`,
    ]);
    const toss = async (page, lines) => {
      await page.goto(`${evil}/toss?${new URLSearchParams(lines.map((line) => ['c', line]))}`);
      await page.evaluate((lines) => lines.forEach((line) => { document.cookie = line; }), lines);
    };

    const ctx = await context();
    const page = await ctx.newPage();
    await toss(page, forms);
    const tossed = (await ctx.cookies(url)).map((cookie) => cookie.name);
    const before = { who: await who(page), session: await sessionOf(ctx) };
    await page.goto(url + '/runs?of=1#/place');
    await logIn(page, 'alice');
    const landed = page.url();
    const own = await sessionOf(ctx);
    const signedIn = await who(page);
    await toss(page, forms);
    await toss(page, [`${SESSION}-attempts=9; Domain=apps.test; Path=/`]);
    const again = { who: await who(page), kept: JSON.stringify(await sessionOf(ctx)) === JSON.stringify(own) };
    // A link to the attacker's own answer.
    await page.goto(evil + '/toss');
    await Promise.all([page.waitForURL('**/oauth2/callback?*'), page.evaluate((to) => { location.href = to; }, answer)]);
    const injected = { told: await page.textContent('h1'), who: await who(page) };

    // How often the browser asks, and what it shows.
    const meet = async (path, name) => {
      let asked = 0;
      const count = (request) => { asked += request.isNavigationRequest() && request.frame() === page.mainFrame() ? 1 : 0; };
      page.on('request', count);
      // An answer without a body is a failure to the driver, as the browser shows a page of its own.
      const status = await page.goto(url + path).then((answer) => answer.status(), () => null);
      page.off('request', count);
      if (status === null) {
        // It comes a little after the failure.
        await page.waitForFunction(() => /HTTP ERROR|ERR_/.test(document.body?.innerText));
      }
      const told = await page.evaluate(() => document.body.innerText);
      if (name) {
        await judge.look(page, name);
      }
      return { status, asked, told };
    };
    const fill = (count, size) => Array.from({ length: count }, (_, index) => `fill${index}=${'x'.repeat(size)}; Domain=apps.test; Path=/`);
    const sizes = {};
    // On a tab of its own, which is not loaded again: they go to the sibling as well.
    const flood = async (count, size) => {
      const thrower = await ctx.newPage();
      await thrower.goto(evil + '/toss');
      await thrower.evaluate((lines) => lines.forEach((line) => { document.cookie = line; }), fill(count, size));
      // The browser keeps them a little later than the page has set them.
      const kept = async () => (await ctx.cookies(url)).filter(({ name }) => name.startsWith('fill')).length;
      while (await kept() < count);
      await thrower.close();
    };
    await flood(9, 3900);
    sizes.some = await meet('/runs', 'headers-too-large');
    await flood(40, 3900);
    sizes.many = await meet('/runs');
    await flood(150, 3900);
    sizes.most = await meet('/runs');
    await ctx.clearCookies({ domain: '.apps.test' });
    const cleared = { who: await who(page), kept: JSON.stringify(await sessionOf(ctx)) === JSON.stringify(own) };

    // A page of this very host sets a second one, which browsers keep beside the first (CHIPS).
    await page.goto(url + '/form');
    await page.evaluate((line) => { document.cookie = line; }, `${SESSION}=${loot.find(({ name }) => name === SESSION).value}; Path=/; Secure; Partitioned`);
    const twice = { ...await meet('/runs', 'cookie-twice'), count: (await sessionOf(ctx)).length };
    await ctx.clearCookies({ name: SESSION });
    await page.goto(url + '/runs');
    await page.waitForURL(url + '/runs');
    return { tossed, before, landed, signedIn, again, injected, sizes, cleared, twice, anew: await who(page), own: own[0], faults: judge.faults };
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
        await page.goto(begin, options.begin === 'sign_in' ? {} : { waitUntil: 'commit' });
        if (options.begin === 'sign_in') {
          // By the page itself: what a pointer hits depends on when the page was painted.
          await page.$eval('a[href^="/oauth2/start"]', (link) => link.click());
        }
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
        // To somebody who is signed in, this page asks whether to sign out.
        if (path === '/oauth2/signed_out') await ctx.clearCookies({ name: '__Host-doorward' });
        await page.goto(options.url + path);
        await look(path);
      }
    }
    return { sideways };
  },

  // Every page that people see.
  async pages() {
    const judge = await Judge.create(options.screenshots);
    const to = (page, path) => page.goto(options.url + path);
    const ctx = await context();
    const page = await ctx.newPage();
    // Begins a login in a browser that is signed in at the provider, up to the provider's answer, which it gives.
    const answerOf = async (context) => {
      let location = '/oauth2/start?issuer=corp&rd=%2Fruns';
      do {
        const answer = await context.request.get(new URL(location, options.url).href, { maxRedirects: 0 });
        location = answer.headers().location;
      } while (!location.includes('/oauth2/callback?'));
      return location;
    };

    await to(page, '/runs');
    await judge.look(page, 'choice');
    await page.click('a[href*="issuer=corp"]');
    await logIn(page, 'alice');
    await page.waitForURL('**/runs');
    await to(page, '/.doorward/whoami');
    await judge.look(page, 'who-am-i');
    const other = await context();
    const elsewhere = await other.newPage();
    await to(elsewhere, '/oauth2/start?issuer=corp');
    await logIn(elsewhere, 'alice');
    const answer = await answerOf(other);
    await elsewhere.goto(answer);
    await to(page, '/.doorward/sessions');
    await judge.look(page, 'sessions');
    await Promise.all([page.waitForNavigation(), page.click('.sessions button')]);
    await judge.look(page, 'session-ended');
    await elsewhere.goto(answer);
    await judge.look(elsewhere, 'login-twice');
    await to(page, '/nothing-for-you');
    await judge.look(page, 'denied');
    await to(page, '/.doorward/nothing');
    await judge.look(page, 'no-such-page');
    await to(page, '/oauth2/start?issuer=away&rd=%2Fruns');
    await judge.look(page, 'provider-down');
    await to(page, '/oauth2/callback?state=x&code=y');
    await judge.look(page, 'not-begun-here');

    const declined = new URL(await answerOf(other));
    declined.searchParams.delete('code');
    declined.searchParams.set('error', 'access_denied');
    declined.searchParams.set('error_description', 'the user is not assigned to this application');
    await elsewhere.goto(declined.href);
    await judge.look(elsewhere, 'declined');
    await page.goto(await answerOf(other));
    await judge.look(page, 'other-browser');

    await to(page, '/form');
    await ctx.clearCookies({ name: '__Host-doorward' });
    await page.evaluate(() => {
      const form = document.createElement('form');
      form.method = 'post';
      form.action = '/deploy';
      document.body.append(form);
      form.submit();
    });
    await page.waitForURL('**/oauth2/unsent?*');
    await judge.look(page, 'form-not-sent');

    await ctx.clearCookies({ name: '__Host-doorward' });
    // Nothing to show: the browser stays where it is.
    await page.route('**/oauth2/start?*', (route) => route.fulfill({ status: 204 }));
    to(page, '/runs').catch(() => {});
    await page.waitForSelector('a[data-next]');
    await judge.look(page, 'going-to-sign-in');
    await page.unroute('**/oauth2/start?*');
    await to(page, '/oauth2/sign_in');
    await judge.look(page, 'choice-again');
    await to(page, '/oauth2/sign_out');
    await judge.look(page, 'not-signed-in');
    await to(page, '/oauth2/start?issuer=corp');
    await page.waitForURL('**/');
    await to(page, '/oauth2/sign_out');
    await judge.look(page, 'sign-out');
    await ctx.clearCookies({ name: '__Host-doorward' });
    await to(page, '/oauth2/signed_out');
    await judge.look(page, 'signed-out');
    // A browser that loses its session each time that it comes back from the provider, which signs it in by itself.
    const protocol = await ctx.newCDPSession(page);
    do {
      await protocol.send('Network.deleteCookies', { name: '__Host-doorward', url: options.url });
      await to(page, '/oauth2/start?issuer=corp');
    } while (new URL(page.url()).pathname === '/');
    await judge.look(page, 'does-not-last');

    const late = await answerOf(other);
    await pause('late');
    await elsewhere.goto(late);
    await judge.look(elsewhere, 'login-late');

    // The twin: a page that is bad in both ways is found out.
    const { faults, seen } = judge;
    judge.faults = [];
    judge.folder = undefined;
    await page.evaluate(() => Object.assign(document.querySelector('h1').style, { color: 'var(--card)', width: '1300px' }));
    await judge.look(page, 'bad');
    return { faults, seen: seen.slice(0, -1), twin: judge.faults };
  },

  // Pages that few people see: of terminals, of logins that are not enough, of clocks.
  async trouble() {
    const judge = await Judge.create(options.screenshots);
    const to = (page, path) => page.goto(options.url + path);
    const ctx = await context();
    const page = await ctx.newPage();
    const seen = {};
    const look = async (page, name) => {
      await judge.look(page, name);
      seen[name] = await page.textContent('main');
    };
    await to(page, '/runs');
    await logIn(page, 'alice');

    // Nothing to show: the browser stays where it is.
    await page.route('**/oauth2/start?*', (route) => route.fulfill({ status: 204 }));
    to(page, '/deploy?to=production').catch(() => {});
    await page.waitForSelector('a[data-next]');
    await look(page, 'step-up-offered');
    await page.unroute('**/oauth2/start?*');
    await to(page, '/deploy?to=production');
    await page.waitForURL('**/oauth2/callback?*');
    await look(page, 'step-up-failed');

    await to(page, '/form');
    await page.evaluate(() => {
      const form = document.createElement('form');
      form.method = 'post';
      form.action = '/oauth2/start';
      document.body.append(form);
      form.submit();
    });
    await page.waitForURL('**/oauth2/start');
    await look(page, 'login-by-form');
    await to(page, '/.doorward/login?port=1');
    await look(page, 'no-program');

    const type = async (page, code) => {
      await to(page, '/.doorward/device');
      await page.fill('input[name=code]', code);
      await Promise.all([page.waitForNavigation(), page.click('form button[type=submit]')]);
    };
    const press = (page, button) => Promise.all([page.waitForNavigation(), page.click(button)]);
    await type(page, options.codes[0]);
    await press(page, '.choices button[type=submit]');
    await page.waitForURL('**/.doorward/device/done?*');
    await type(page, options.codes[0]);
    await look(page, 'terminal-let-in');
    await pause('let in');
    await type(page, options.codes[0]);
    await look(page, 'terminal-signed-in');

    // Declined in one tab, while the other one comes back from the provider.
    const slow = await ctx.newPage();
    const callback = await hold(slow, '*/oauth2/callback?*');
    await type(slow, options.codes[1]);
    const pressed = press(slow, '.choices button[type=submit]');
    await callback.address;
    await type(page, options.codes[1]);
    await press(page, 'form.actions button[type=submit]');
    await callback.release();
    await pressed;
    await look(slow, 'terminal-gone');

    for (let time = 0; time < 20; time++) {
      await ctx.request.post(options.url + '/.doorward/device', { form: { code: 'BCDF-GHJK' }, headers: { origin: options.url } });
    }
    await type(page, 'BCDF-GHJK');
    await look(page, 'too-many-codes');

    await pause('clock');
    const later = await (await context()).newPage();
    await to(later, '/runs');
    await logIn(later, 'alice');
    await look(later, 'clocks-differ');
    return { faults: judge.faults, titles: judge.seen, seen };
  },

  // The page of `doorward audit report`, on the screen and on paper.
  async report() {
    const judge = await Judge.create(options.screenshots);
    const page = await (await context()).newPage();
    await page.goto(`file://${options.file}`);
    await judge.look(page, 'report');
    await page.emulateMedia({ media: 'print' });
    // The width of A4 between margins of 1 cm.
    await page.setViewportSize({ width: 718, height: 1047 });
    const cut = () => page.evaluate(() => {
      const right = document.documentElement.clientWidth;
      const wide = [...document.querySelectorAll('table, th, td, pre')].filter((one) => one.getBoundingClientRect().right > right + 1 || one.scrollWidth > one.clientWidth + 1);
      const apart = [...document.querySelectorAll('tr')].filter((row) => getComputedStyle(row).breakInside !== 'avoid');
      const heads = [...document.querySelectorAll('thead')].filter((head) => getComputedStyle(head).display !== 'table-header-group');
      return [...wide, ...apart, ...heads].map((one) => one.outerHTML.slice(0, 200));
    });
    const seen = await cut();
    const pdf = await page.pdf({ format: 'A4', margin: { top: '1cm', bottom: '1cm', left: '1cm', right: '1cm' } });
    const pages = pdf.toString('latin1').match(/\/Type\s*\/Page\b/g)?.length ?? 0;
    await page.evaluate(() => { document.querySelector('td').style.whiteSpace = 'nowrap'; document.querySelector('td').textContent = 'wide'.repeat(100); });
    return { faults: judge.faults, seen: judge.seen, pages, cut: seen, twin: await cut() };
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
    const deniedText = await page.textContent('body');
    const prod = await page.goto(options.url + '/apis/tekton.dev/v1/namespaces/prod/pipelineruns');
    return { landed, body, denied: denied.status(), deniedText, prod: prod.status(), prodText: await page.textContent('body') };
  },
};

try {
  console.log(JSON.stringify(await scenarios[options.scenario]()));
} catch (failure) {
  for (const page of browser.contexts().flatMap((context) => context.pages())) {
    const text = await page.textContent('body', { timeout: 1000 }).catch((why) => why.message);
    console.error(page.url(), text);
  }
  throw failure;
} finally {
  await browser.close();
}
