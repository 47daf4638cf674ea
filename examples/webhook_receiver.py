"""A webhook receiver: verify, acknowledge, handle each entry once.  SECRET=whsec_... python webhook_receiver.py [PORT]"""

import base64, hashlib, hmac, json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
seen = set()  # In earnest a table with journal_entry_id as its key, written together with what you do about the entry.


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message_id, timestamp = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        expected = hmac.digest(KEY, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
        given = [
            base64.b64decode(one[3:]) for one in self.headers["webhook-signature"].split() if one.startswith("v1,")
        ]
        fresh = abs(time.time() - int(timestamp)) < 300
        genuine = fresh and any(hmac.compare_digest(expected, one) for one in given)
        self.send_response(204 if genuine else 401)
        self.end_headers()
        event = json.loads(body)
        if genuine and event["journal_entry_id"] not in seen:
            seen.add(event["journal_entry_id"])
            print("verified", event["event_type"], event["journal_entry_id"], flush=True)


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8080), Receiver).serve_forever()
