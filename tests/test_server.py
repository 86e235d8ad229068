"`xtokd serve` under load and under hostile hands: every request is answered or closed, none is a traceback, and nobody else waits for it."
import http.client, json, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path

import pytest
import torch

from xtokd.models.loading import load_model, load_tokenizer
from xtokd.models.forward import reference_logits
from xtokd.serving.client import RemoteTeacher
from xtokd.serving.server import Server
from xtokd.train.checkpoint import save_student
from xtokd.vocab.bytevocab import ByteVocab

ROOT = Path(__file__).parent.parent
MODEL, TOKENIZER = load_model("tiny", "teacher", device="cpu"), load_tokenizer("tiny", "teacher")
VOCAB = ByteVocab(TOKENIZER)
IDS = VOCAB.encode("There are 9632 sheep.")
JSON = {"Content-Type": "application/json"}


def serve(model=MODEL, **kw): return Server(model, VOCAB, "tiny", **kw)


def ask(server, path="/v1/completions", body=None, headers=JSON, command="POST", timeout=20):
    "Status and answer of one request; `body` as JSON, or bytes as they are."
    connection = http.client.HTTPConnection(*server.server_address, timeout=timeout)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(command, path, data if command == "POST" else None, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally: connection.close()


def raw(server, data, wait=5.):
    "What the server sends for these bytes until it closes the connection."
    with socket.create_connection(server.server_address, timeout=wait) as s:
        s.sendall(data)
        found = b""
        while part := s.recv(1 << 16): found += part
        return found


@pytest.fixture(scope="module")
def server():
    with serve() as s: yield s


# ---- bad requests -----------------------------------------------------------------------------------------------------------
BAD = [dict(prompt=2.5), dict(prompt=[1.5]), dict(prompt=[True]), dict(prompt=[-1]), dict(prompt=[10 ** 9]), dict(prompt={}), dict(prompt=3), dict(prompt=None), dict(prompt=[]), dict(prompt=[[]]), dict(prompt=""), dict(prompt="\ud800"),
       dict(prompt=[["a"]]), dict(max_tokens="5"), dict(max_tokens=float("nan")), dict(max_tokens=-1), dict(max_tokens=2.5), dict(max_tokens=10 ** 30), dict(max_tokens=[]), dict(temperature="hot"), dict(temperature=1e-320), dict(temperature=-1),
       dict(temperature=float("inf")), dict(temperature={}), dict(prompt_logprobs="5"), dict(prompt_logprobs=2.5), dict(prompt_logprobs=True), dict(prompt_logprobs=-1), dict(prompt_logprobs=10 ** 6), dict(echo="yes"), dict(echo=True, logprobs="5"),
       dict(seed="x"), dict(seed=2 ** 70), dict(n=2), dict(n="x"), dict(stop="."), dict(stop=[1]), dict(top_p=1.5), dict(top_p=0), dict(top_k=-3), dict(stream=True), dict(stop_token_ids="x"), dict(stop_token_ids=[5]), dict(max_tokens=0), dict(max_tokens=5000)]


@pytest.mark.parametrize("fields", BAD, ids=lambda x: json.dumps(x)[:40])
def test_a_bad_field_is_status_400_with_its_name(server, fields):
    status, answer = ask(server, body={"prompt": IDS, "max_tokens": 2} | fields)
    name = [n for n in fields if n != "echo" or len(fields) == 1][0]
    assert status == 400 and answer["error"]["code"] == 400 and (name in answer["error"]["message"] or "maximum context" in answer["error"]["message"]), answer


@pytest.mark.parametrize("path, body", [("/tokenize", {}), ("/tokenize", {"prompt": 3}), ("/tokenize", {"prompt": "\udc00"}), ("/tokenize", {"prompt": "a", "add_special_tokens": 1}), ("/detokenize", {}), ("/detokenize", {"tokens": ["a"]}),
                                        ("/detokenize", {"tokens": [10 ** 9]}), ("/v1/completions", b"[" * 100_000), ("/v1/completions", b"{"), ("/v1/completions", b"[1]"), ("/v1/completions", b"\xff"), ("/v1/completions", b'{"prompt": ' + b"9" * 5000 + b"}")])
def test_other_bad_bodies(server, path, body): assert ask(server, path, body)[0] == 400


@pytest.mark.parametrize("fields", [{}, dict(n=1, stop=None, top_p=1.0, top_k=-1, min_p=0.0, stream=False, model="tiny", user="me", repetition_penalty=1.0, return_token_ids=True), dict(temperature=None, max_tokens=None, seed=None), dict(stop_token_ids=list(map(int, VOCAB.end_ids)))], ids=str)
def test_fields_that_change_nothing_are_taken(server, fields): assert ask(server, body={"prompt": IDS, "max_tokens": 2} | fields)[0] == 200


def test_no_bad_request_is_tried_again():
    with serve() as s:
        teacher = RemoteTeacher(s.url, TOKENIZER)
        before = teacher.api.http.tries
        with pytest.raises(RuntimeError, match="status 400.*temperature is 'hot'"): teacher.api.complete(IDS, lambda found: found, temperature="hot")
        assert teacher.api.http.tries == before + 1


# ---- headers ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length, status", [("-1", 400), ("abc", 400), ("1e3", 400), ("99999999999999999999", 413), (str(17 << 20), 413), (None, 411)])
def test_lengths_of_a_body(server, length, status):
    header = f"Content-Length: {length}\r\n" if length else ""
    began = time.monotonic()
    answer = raw(server, f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{header}\r\n".encode() + b"{}")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and answer.count(b"HTTP/1.1") == 1 and time.monotonic() - began < 4


def test_a_client_without_key_sends_no_body():
    "The answer comes before the body, and what is sent all the same is not kept."
    import resource
    with serve(key="abc") as s, socket.create_connection(s.server_address, timeout=10) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 400000000\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 401 ")
        before, sent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
        with pytest.raises(OSError):
            while sent < 400 << 20: sent += client.send(bytes(1 << 20))
            raise ConnectionError("all was taken")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10
        for words in ("Bearer abd", "Bearer", "abc", "Bearer é"): assert ask(s, body={"prompt": IDS}, headers=JSON | {"Authorization": words.encode()})[0] == 401
        assert ask(s, "/health", command="GET", headers={})[0] == 401 and ask(s, body={"prompt": IDS, "max_tokens": 1}, headers=JSON | {"Authorization": "Bearer abc"})[0] == 200


WEB = {"Origin": "http://evil.example"}


@pytest.mark.parametrize("headers, status", [({"Content-Type": "text/plain"} | WEB, 403), (JSON | WEB, 403), (JSON | {"Origin": "null"}, 403), ({"Content-Type": "text/plain"}, 415), ({}, 415), ({"Content-Type": "multipart/form-data; boundary=x"}, 415), ({"Content-Type": "application/x-www-form-urlencoded"}, 415)])
def test_a_web_page_cannot_change_the_weights(tmp_path, headers, status):
    "What a page of another site can send without asking first changes nothing; the same request of a program does."
    model = load_model("tiny", "student", device="cpu")
    tokenizer = load_tokenizer("tiny", "student")
    with torch.no_grad(): model.get_input_embeddings().weight.add_(1)
    save_student(tmp_path / "new", model, tokenizer)
    served = load_model("tiny", "student", device="cpu")
    before = served.get_input_embeddings().weight.detach().clone()
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "new")}}
    with Server(served, ByteVocab(tokenizer), "tiny", accept_weights=True) as s:
        assert ask(s, "/collective_rpc", body, headers)[0] == status and ask(s, "/reset_prefix_cache", {}, headers)[0] == status
        assert ask(s, "/collective_rpc", command="GET", headers={})[0] == 405
        assert raw(s, b"OPTIONS /collective_rpc HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 501")
        assert torch.equal(served.get_input_embeddings().weight, before)
        assert ask(s, "/collective_rpc", body)[0] == 200
        assert torch.equal(served.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_weights_that_do_not_fit_are_status_400(tmp_path):
    save_student(tmp_path / "teacher", MODEL, TOKENIZER)
    (tmp_path / "empty").mkdir()
    student = load_model("tiny", "student", device="cpu")
    before = student.get_input_embeddings().weight.detach().clone()
    with Server(student, ByteVocab(load_tokenizer("tiny", "student")), "tiny", accept_weights=True) as s:
        for folder in ("/no/such", "a\0b", "x" * 5000, 5, None, str(tmp_path / "empty"), str(tmp_path / "teacher")): assert ask(s, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})[0] == 400, folder
        for body in ({}, {"method": "exec"}, {"method": "reload_weights", "kwargs": "x"}): assert ask(s, "/collective_rpc", body)[0] == 400
    assert torch.equal(student.get_input_embeddings().weight, before)


def test_an_open_server_that_takes_weights_needs_a_key():
    with pytest.raises(ValueError, match="XTOKD_SERVE_KEY"): serve(host="0.0.0.0", accept_weights=True)
    with serve(host="0.0.0.0") as s: assert s.is_open and "0.0.0.0" not in s.url
    with serve(host="0.0.0.0", key="abc", accept_weights=True) as s: assert not s.is_open


# ---- slow and many ----------------------------------------------------------------------------------------------------------
def closes(s, within):
    "Does the server close this connection in time?"
    s.settimeout(within)
    try:
        while s.recv(1 << 16): pass
        return True
    except TimeoutError: return False
    except OSError: return True


def test_requests_that_never_arrive_are_given_up():
    "Nothing at all, half a header, a header that drips, half a body."
    starts = (b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
    with serve(read_seconds=1.) as s:
        clients = [socket.create_connection(s.server_address) for _ in range(4)]
        for client, data in zip(clients, starts): client.sendall(data)
        end, dripped = time.monotonic() + 6, 0
        try:
            clients[3].sendall(b"GET /health HTTP/1.1\r\nX: ")
            while time.monotonic() < end:
                clients[3].sendall(b"x")
                dripped += 1
                time.sleep(.1)
        except OSError: pass
        assert dripped < 30 and all(closes(client, 5) for client in clients[:3]) and ask(s, "/health", command="GET", headers={})[0] == 200
        deadline = time.monotonic() + 5
        while s.deadlines and time.monotonic() < deadline: time.sleep(.02)
        assert not s.deadlines


def test_connections_have_a_limit_and_are_free_again():
    with serve(max_connections=5) as s:
        held = [socket.create_connection(s.server_address) for _ in range(5)]
        time.sleep(.3)
        assert raw(s, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 503")
        for client in held: client.close()
        deadline = time.monotonic() + 5
        while ask(s, "/health", command="GET", headers={})[0] != 200 and time.monotonic() < deadline: time.sleep(.05)
        assert ask(s, "/health", command="GET", headers={})[0] == 200


class Slow(torch.nn.Module):
    "A pass takes `seconds` more."
    def __init__(self, seconds): super().__init__(); self.seconds, self.passes = seconds, 0
    def __call__(self, module, args): self.passes += 1; time.sleep(self.seconds)


@pytest.fixture
def slow():
    "A server whose passes take .05 s each."
    model, wait = load_model("tiny", "teacher", device="cpu"), Slow(.05)
    model.register_forward_pre_hook(wait)
    with serve(model, max_waiting=3) as s: yield s, wait


LONG = {"prompt": IDS, "max_tokens": 400, "temperature": 1, "logit_bias": {}}


def left(server, body=LONG):
    "A connection that has sent a request."
    data = json.dumps(body).encode()
    client = socket.create_connection(server.server_address)
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return client


def until(condition, seconds=5.):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(.02)
    return condition()


def test_others_are_answered_while_the_model_computes_and_a_full_queue_says_so(slow):
    server, wait = slow
    clients = [left(server, LONG | {"prompt": [IDS] * 8}) for _ in range(3)]
    assert until(lambda: len(server.queue.tickets) == 3)
    began = time.monotonic()
    assert ask(server, "/health", command="GET", headers={})[0] == 200 and ask(server, "/v1/models", command="GET", headers={})[0] == 200 and ask(server, "/tokenize", {"prompt": "a"})[0] == 200
    status, answer = ask(server, body=LONG)
    assert status == 503 and "ask less at once" in answer["error"]["message"] and time.monotonic() - began < 2
    for client in clients: client.close()
    assert until(lambda: not server.queue.tickets)


def test_what_nobody_waits_for_is_not_computed(slow):
    "The request that computes ends at its next pass, those that wait leave the queue: 3 x 400 passes would take a minute."
    server, wait = slow
    clients = [left(server, LONG | {"seed": n}) for n in range(3)]
    assert until(lambda: wait.passes > 2)
    for client in clients: client.close()
    assert until(lambda: not server.queue.tickets, 3)
    assert wait.passes < 60
    assert ask(server, body={"prompt": IDS, "max_tokens": 2})[0] == 200


def test_sixty_four_connections_at_once():
    found, lock = [], threading.Lock()
    with serve(max_waiting=200) as s:
        def one():
            try: status = ask(s, body={"prompt": IDS, "max_tokens": 1, "prompt_logprobs": 0}, timeout=60)[0]
            except OSError as e: status = repr(e)
            with lock: found.append(status)
        threads = [threading.Thread(target=one) for _ in range(64)]
        for t in threads: t.start()
        for t in threads: t.join()
    assert found == [200] * 64


# ---- batches ----------------------------------------------------------------------------------------------------------------
def test_the_prompts_of_a_request_are_read_in_batches():
    "Log-probs of many prompts of many lengths are those of each alone, in few passes; greedy responses are too."
    model, wait = load_model("tiny", "teacher", device="cpu"), Slow(0)
    model.register_forward_pre_hook(wait)
    prompts = [IDS[:n] for n in (5, 1, 3, 5, 2, 6, 4, 6)] * 4
    body = {"prompt_logprobs": 2, "max_tokens": 1}
    with serve(model) as s:
        together, passes = ask(s, body=body | {"prompt": prompts})[1], wait.passes
        assert passes == 1
        for prompt, choice in list(zip(prompts, together["choices"]))[:8]:
            logp = reference_logits(MODEL, [prompt[:1]], [prompt[1:]])[0][:, :len(VOCAB)].log_softmax(-1)
            assert choice["prompt_token_ids"] == prompt and choice["prompt_logprobs"][0] is None and len(choice["prompt_logprobs"]) == len(prompt)
            for row, i, entry in zip(logp, prompt[1:], choice["prompt_logprobs"][1:]): assert abs(entry[str(i)]["logprob"] - float(row[i])) < 1e-4
        greedy = {"max_tokens": 6, "temperature": 0}
        many = [c["token_ids"] for c in ask(s, body=greedy | {"prompt": prompts[:8]})[1]["choices"]]
        assert many == [ask(s, body=greedy | {"prompt": p})[1]["choices"][0]["token_ids"] for p in prompts[:8]]


# ---- the command ------------------------------------------------------------------------------------------------------------
def test_the_command_says_that_a_server_is_open_and_shows_no_traceback():
    env = {k: v for k, v in os.environ.items() if k != "XTOKD_SERVE_KEY"} | {"PYTHONPATH": str(ROOT)}
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    def heed(): signal.signal(signal.SIGINT, signal.SIG_DFL)         # a test run in the background hands "ignore" on
    server = subprocess.Popen([sys.executable, "-m", "xtokd.cli", "serve", "tiny", "--host", "0.0.0.0", "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd="/", preexec_fn=heed)
    try:
        first = server.stdout.readline()
        assert "0.0.0.0" not in first
        for data in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"x" * 70_000):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as s: s.sendall(data); s.recv(100)
            except OSError: pass
        with socket.create_connection(("127.0.0.1", port), timeout=5) as s:
            s.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")      # closed with a reset
    finally:
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert "XTOKD_SERVE_KEY" in err and "Traceback" not in err
