"""Stands in for Grafana where no image can be had: says so on its port, once it has read what it would be provisioned with."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

DASHBOARDS = {file.name: json.loads(file.read_text()).get("title") for file in Path("/var/lib/grafana/dashboards").glob("*.json")}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        said = {"stand-in": "This is not Grafana: no registry was reachable.", "database": "ok", "dashboards": DASHBOARDS}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing for each request."""


HTTPServer(("", 3000), Handler).serve_forever()
