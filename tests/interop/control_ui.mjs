// Opens the Control UI in a real browser as its user would, says something, and prints what it saw as one JSON object.
import { chromium } from 'playwright-core';

const [url, profile, words] = process.argv.slice(2);
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: '/usr/bin/chromium',
  viewport: { width: 1400, height: 900 },
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
const saw = { complaints: [], refused: [], methods: [] };
const page = await browser.newPage();
// What a content security policy forbids is complained about here, too.
page.on('console', (message) => { if (message.type() === 'error') saw.complaints.push(message.text()); });
page.on('pageerror', (error) => saw.complaints.push(String(error)));
page.on('response', (answer) => { if (answer.status() >= 400) saw.refused.push(`${answer.status()} ${answer.url()}`); });
page.on('websocket', (socket) => socket.on('framereceived', ({ payload }) => {
  const method = /"METHOD_NOT_IMPLEMENTED","method":"([^"]+)"/.exec(String(payload));
  if (method) saw.methods.push(method[1]);
}));

await page.goto(url);
const composer = page.getByLabel('Chat composer');
await composer.waitFor({ timeout: 30_000 });
// The list comes with the connection, and the names of its sessions are links.
await page.getByText('hello to the list').first().waitFor({ timeout: 15_000 });
saw.list = true;
await composer.fill(words);
await composer.press('Enter');
await page.getByText(`${words}!`, { exact: true }).first().waitFor({ timeout: 15_000 });
// It knows that the run is over, and its own message in what the gateway tells everybody.
await page.getByText('Done', { exact: true }).first().waitFor({ timeout: 15_000 });
saw.mine = await page.getByText(words, { exact: true }).count();
// A page of the application that is opened by its address.
await page.goto(new URL('./chat/main/other', url.split('#')[0]).href);
await page.getByText('echo hello to the list', { exact: true }).first().waitFor({ timeout: 15_000 });
saw.deep = true;
console.log(JSON.stringify(saw));
await browser.close();
