"""Serve a model on this machine as an OpenAI-compatible chat endpoint, to try recipes that call one without a key.

    python examples/serve_model.py classroom/teacher --port 8000

Then, in the recipe: `generation: {class_path: montessori_pl.generation.OpenAIBackend, init_args: {base_url:
http://localhost:8000/v1, api_key_env: null}}`. One answer at a time: for trying, not for throughput.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from montessori_pl.generation import GenerationBackend, Request, Sampling, TransformersBackend
from montessori_pl.models.loading import ModelSource


def make_server(backend: GenerationBackend, port: int) -> ThreadingHTTPServer:
    """A server that answers chat completions with this engine; port 0 takes a free one."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, content = 200, complete(body)
            except (KeyError, TypeError, ValueError) as error:
                status, content = 400, {"error": {"message": str(error)}}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        names = ("temperature", "top_p", "presence_penalty", "max_tokens")
        sampling = Sampling(**{"top_p": 1.0, **{name: body[name] for name in names if name in body}})
        with one_at_a_time:
            (answer,) = backend.generate([Request(messages=body["messages"], seed=body.get("seed", 0))], sampling)
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if answer.finished else "length"}
        usage = {"prompt_tokens": answer.num_prompt_tokens, "completion_tokens": answer.num_tokens}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id, local directory, classroom/teacher or classroom/student")
    parser.add_argument("--chat_template", default="auto", help="chat template: auto, a shipped one, or a Jinja file")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    engine = TransformersBackend()
    engine.load(ModelSource(options.model, chat_template=options.chat_template))
    print(f"{options.model} answers at http://localhost:{options.port}/v1", flush=True)
    make_server(engine, options.port).serve_forever()
