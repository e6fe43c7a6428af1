"""A server of files on this machine that can misbehave in the ways of the network."""

import contextlib
import http.server
import threading


class FileServer(http.server.ThreadingHTTPServer):
    """Serves what is in `files`: bytes, or functions of the request's handler that answer by themselves."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, path, content):
        """Has `content` at `path`; returns its address."""
        self.files[path] = content
        return self.url + path

    def add_folder(self, path, folder):
        """Has the files of a folder under `path`; returns its address."""
        for file in folder.iterdir():
            self.add(f"{path}/{file.name}", file.read_bytes())
        return self.url + path


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's `files` say."""

    def do_GET(self):
        self.server.requests.append(self.path)
        content = self.server.files.get(self.path, status(404))
        if callable(content):
            content(self)
        else:
            answer(content)(self)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving():
    """A `FileServer` that answers until the end."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(content, headers=()):
    """An answer with the content and these headers."""

    def send(handler):
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)

    return send


def status(code):
    """An answer with an error and a page about it."""
    return lambda handler: handler.send_error(code)


def redirect(url):
    """An answer that sends to another address, as the downloads of releases do."""

    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.end_headers()

    return answer


def broken_off(content, with_length=True):
    """An answer that ends in the middle."""

    def answer(handler):
        handler.send_response(200)
        if with_length:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])

    return answer
