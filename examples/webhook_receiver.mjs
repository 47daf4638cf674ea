// A webhook receiver: verify, acknowledge, handle each entry once.  SECRET=whsec_... node webhook_receiver.mjs [PORT]
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const key = Buffer.from(process.env.SECRET.replace("whsec_", ""), "base64");
const seen = new Set(); // In earnest a table with journal_entry_id as its key, written together with what you do about it.

createServer(async (request, response) => {
  const body = Buffer.concat(await request.toArray());
  const { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures } = request.headers;
  const expected = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest();
  const given = signatures.split(" ").map((one) => Buffer.from(one.replace("v1,", ""), "base64"));
  const genuine = Math.abs(Date.now() / 1000 - Number(timestamp)) < 300
    && given.some((one) => one.length === expected.length && timingSafeEqual(one, expected));
  response.writeHead(genuine ? 204 : 401).end();
  const event = genuine ? JSON.parse(body) : undefined;
  if (!event || seen.has(event.journal_entry_id)) return;
  seen.add(event.journal_entry_id);
  console.log("verified", event.event_type, event.journal_entry_id);
}).listen(Number(process.argv[2] ?? 8080), "127.0.0.1");
