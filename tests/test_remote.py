"""A served teacher against a real HTTP server: the same signal as the local one, and every fault of the wire found."""
import json, socket, threading, time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xtokd.rows.pair_batch import PairBatch
from xtokd.rows.dense import LogitRows
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.runlog import Run
from xtokd.hub import resolve
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.objectives import objective
from xtokd.alignment.pair import Pair
from xtokd.data.prompts import load_prompts
from xtokd.serving.client import RemoteTeacher
from xtokd.models.forward import response_logits
from xtokd.models.sampling import generate_responses
from xtokd.serving.server import Handler, Server
from xtokd.models.side import load_side
from xtokd.train.samples import generate_samples
from xtokd.rows.topk import to_top_k
from xtokd.serving.http import RemoteError

TEACHER, TOKENIZER = load_model("tiny", "teacher", device="cpu"), load_tokenizer("tiny", "teacher")
VOCAB = ByteVocab(TOKENIZER)
BOS = 1616
PROMPTS = [[BOS, *VOCAB.encode(t)] for t in ("How many?", "Say it.", "Count the sheep, please.")]
RESPONSES = [VOCAB.encode("There are 9632."), [*VOCAB.encode("7 altogether."), 1618], VOCAB.encode("12")]


class Faulty(Handler):
    "The server of xtokd, with faults: `server.faults` holds functions (handler, path, body, answer) -> True where they sent something themselves; each is used `server.times` times."
    def send(self, status, found, headers=()):
        if self.path == "/v1/completions" and status == 200:
            self.server.seen.append(self.body)
            for fault in self.server.faults:
                if self.server.left.get(fault, self.server.times) > 0:
                    self.server.left[fault] = self.server.left.get(fault, self.server.times) - 1
                    if fault(self, found): return
        super().send(status, found, headers)
    def respond(self, body):
        self.body = body
        if self.server.bos and self.path == "/v1/completions" and isinstance(body.get("prompt"), list): body = body | {"prompt": [self.server.bos, *body["prompt"]]}
        self.found = None
        super().respond(body)


def serve(*faults, times=10 ** 9, bos=None, model=TEACHER, tokenizer=TOKENIZER, **kw):
    s = Server(model, tokenizer, "tiny", handler=Faulty, **kw)
    s.faults, s.times, s.left, s.seen, s.bos = faults, times, {}, [], bos
    return s


def remote(server, tokenizer=VOCAB, **kw):
    t = RemoteTeacher(server.url, tokenizer, **{"timeout": 10, "retries": 3} | kw)
    t.api.http.waits = []
    t.api.http.sleep = t.api.http.waits.append
    return t


def entries(h, found): return found["choices"][0]["prompt_logprobs"]
def put(h, status, text, headers=()): Handler.send(h, status, text, headers); return True


# faults that pass: each is injected once for every one of them, and the numbers come all the same
def busy(h, found): return put(h, 429, {"error": "busy"}, [("Retry-After", "7")])
def starting(h, found): return put(h, 503, {"error": "starting"})
def broken(h, found): return put(h, 500, {"error": "boom"})
def half(h, found):
    data = json.dumps(found).encode()[:-40]
    h.send_response(200); h.send_header("Content-Length", str(len(data))); h.end_headers(); h.wfile.write(data)
    return True
def short(h, found):
    data = json.dumps(found).encode()
    h.send_response(200); h.send_header("Content-Length", str(len(data))); h.end_headers(); h.wfile.write(data[:50]); h.close_connection = True
    return True
def hang_up(h, found): h.close_connection = True; h.connection.shutdown(socket.SHUT_RDWR); return True
def hollow(h, found): found["choices"] = []
def said_error(h, found): return put(h, 200, {"error": {"message": "engine died"}})
def null_row(h, found): entries(h, found)[-1] = None
def left_out(h, found): e = entries(h, found); e[-1].pop(str(found["choices"][0]["prompt_token_ids"][-1]))
def impossible(h, found): entries(h, found)[-1] |= {"3": {"logprob": 0.}, "4": {"logprob": 0.}}
def zeros(h, found):
    for e in entries(h, found)[1:]:
        for x in e.values(): x["logprob"] = 0.
PASSING = [busy, starting, broken, half, short, hang_up, hollow, said_error, null_row, left_out, impossible, zeros]

# changes that are no faults: other servers are like this
def ragged(h, found):
    for n, e in enumerate(entries(h, found)[1:]):
        own = str(found["choices"][0]["prompt_token_ids"][n + 1])
        for i in [i for i in list(e)[1 + n % 4:] if i != own]: del e[i]
def silent_about_ids(h, found): del found["choices"][0]["prompt_token_ids"]
def plain_numbers(h, found): found["choices"][0]["prompt_logprobs"] = [e and {i: x["logprob"] for i, x in e.items()} for e in entries(h, found)]
HARMLESS = [ragged, silent_about_ids, plain_numbers]


def local(k=0): return to_top_k(LogitRows(response_logits(TEACHER, PROMPTS, RESPONSES), RESPONSES, VOCAB), k)
def same(far, near): return far.offsets.tolist() == near.offsets.tolist() and torch.allclose(far.token_logp(), near.token_logp(), atol=1e-4) and torch.allclose(far.token_logp_merged_stops(), near.token_logp_merged_stops(), atol=1e-4)


def test_a_served_teacher_says_what_a_local_one_says():
    with serve() as s:
        far, bad = remote(s).score_responses(PROMPTS, RESPONSES, 6)
        assert all(isinstance(x, int) for b in s.seen for x in b["prompt"]) and all(b["temperature"] == 1 and b["max_tokens"] == 1 for b in s.seen)
    near = local(6)
    assert bad == 0 and same(far, near) and torch.equal(far.topk(6).indices, near.topk(6).indices) and torch.allclose(far.topk(6).values, near.topk(6).values, atol=1e-4)


@pytest.mark.parametrize("form", ["vllm", "echo"])
def test_both_forms(form):
    with serve() as s: far, bad = remote(s, form=form).score_responses(PROMPTS, RESPONSES, 4)
    assert bad == 0 and same(far, local()) and torch.equal(far.topk(4).indices, local(4).topk(4).indices)


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f.__name__)
def test_a_fault_that_passes_is_tried_again(fault):
    with serve(fault, times=1) as s:
        t = remote(s, concurrency=1)
        far, bad = t.score_responses(PROMPTS, RESPONSES, 2)
        assert len(s.seen) > len(PROMPTS) and bad == 0
    assert same(far, local())
    if fault is busy: assert 7. in t.api.http.waits


@pytest.mark.parametrize("change", HARMLESS, ids=lambda f: f.__name__)
def test_other_servers(change):
    with serve(change) as s: far, bad = remote(s).score_responses(PROMPTS, RESPONSES, 6)
    assert bad == 0 and same(far, local())
    if change is ragged: assert (far.topk(6).indices == -1).any() and torch.equal(far.topk(1).indices, local(1).topk(1).indices)


def test_all_faults_at_once():
    with serve(*PASSING, *HARMLESS, times=1) as s: far, bad = remote(s, concurrency=3, retries=20).score_responses(PROMPTS * 3, RESPONSES * 3, 6)
    assert bad == 0 and torch.allclose(far.token_logp(), local().token_logp().repeat(3), atol=1e-4)


@pytest.mark.parametrize("fault, says", [(busy, "429.*concurrency=2"), (starting, "503.*starting"), (broken, "500.*log"), (half, "no whole JSON"), (hang_up, "is the server up"), (zeros, "placeholders.*prefix caching"), (hollow, "no choices")], ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault_that_stays_ends_with_url_cause_and_cure(fault, says):
    with serve(fault) as s, pytest.raises(RemoteError, match=f"(?s)127.0.0.1.*{says}"): remote(s, retries=2).score_responses(PROMPTS, RESPONSES, 2)


@pytest.mark.parametrize("fault", [null_row, left_out, impossible], ids=lambda f: f.__name__)
def test_rows_that_stay_unsound_are_not_numbers_and_counted(fault):
    with serve(fault) as s: far, bad = remote(s).score_responses(PROMPTS, RESPONSES, 2)
    last = far.offsets[1:] - 1
    keep = np.setdiff1d(np.arange(len(far)), last)
    assert bad == 3 and far.token_logp()[last].isnan().all() and torch.allclose(far.token_logp()[keep], local().token_logp()[keep], atol=1e-4)


def test_a_bad_request_is_not_tried_again_and_its_words_are_told():
    with serve(max_logprobs=3) as s:
        t = remote(s)
        before = t.api.http.tries
        with pytest.raises(RemoteError, match="at most 3.*--max-logprobs"): t.api.prompt_entries([*PROMPTS[0], *RESPONSES[0]], 50)
        assert t.api.http.tries == before + 1 and not t.api.http.waits


def test_a_bos_that_the_server_adds_is_repaired_where_it_was_there_already():
    for faults in ((), (silent_about_ids,)):
        with serve(*faults, bos=BOS) as s:
            t = remote(s, concurrency=1)
            far, bad = t.score_responses(PROMPTS, RESPONSES, 3)
            assert t.api.skip_bos and s.seen[-1]["prompt"][0] != BOS and bad == 0 and same(far, local())


def test_a_bos_that_was_not_there_is_refused():
    with serve(bos=1617) as s, pytest.raises(RemoteError, match="puts id 1617 before"): remote(s).score_responses(PROMPTS, RESPONSES, 3)


def cut_end(h, found):
    c = found["choices"][0]
    c["prompt_token_ids"], c["prompt_logprobs"] = c["prompt_token_ids"][:-2], c["prompt_logprobs"][:-2]
def cut_beginning(h, found):
    c = found["choices"][0]
    c["prompt_token_ids"], c["prompt_logprobs"] = c["prompt_token_ids"][2:], [None, *c["prompt_logprobs"][3:]]
def other_ids(h, found): found["choices"][0]["prompt_token_ids"] = [x + 1 for x in found["choices"][0]["prompt_token_ids"]]
def no_scores(h, found): found["choices"][0]["prompt_logprobs"] = None


def test_a_server_that_cuts_the_end_leaves_fewer_rows():
    with serve(cut_end) as s: far, bad = remote(s).score_responses(PROMPTS, RESPONSES, 0)
    near = local()
    at = np.concatenate([np.arange(a, max(a, b - 2)) for a, b in zip(near.offsets, near.offsets[1:])])
    assert bad == 0 and np.diff(far.offsets).tolist() == [max(0, len(r) - 2) for r in RESPONSES] and torch.allclose(far.token_logp(), near.token_logp()[at], atol=1e-4)


@pytest.mark.parametrize("fault, says", [(cut_beginning, "cut the beginning"), (other_ids, "other ids than were sent"), (no_scores, "cannot be a teacher")], ids=lambda x: getattr(x, "__name__", ""))
def test_answers_about_another_text_are_refused(fault, says):
    with serve(fault) as s, pytest.raises(RemoteError, match=says): remote(s).score_responses(PROMPTS, RESPONSES, 2)


def test_the_context_masks_and_counts():
    with serve() as s:
        t = remote(s)
        t.config.max_position_embeddings = 12
        samples = [SimpleNamespace(teacher_prompt_ids=p, teacher_ids=r) for p, r in zip(PROMPTS, RESPONSES)]
        rows, counts = t.score_samples(samples)
    sizes = [max(0, min(len(r), 11 - len(p))) for p, r in zip(PROMPTS, RESPONSES)]
    assert np.diff(rows.offsets).tolist() == sizes and counts["teacher_tokens_masked"] == sum(map(len, RESPONSES)) - sum(sizes) > 0


def test_another_tokenizer_is_refused_before_anything_is_learned():
    with serve() as s:
        with pytest.raises(RemoteError, match="tokenizer is not.*--teacher-tokenizer"): RemoteTeacher(s.url, load_tokenizer("tiny", "student"))
        with pytest.raises(RemoteError, match="serves tiny, not 'gpt'"): RemoteTeacher(s.url, TOKENIZER, model="gpt")
        with pytest.raises(ValueError, match="temperature=0.7"): RemoteTeacher(s.url, TOKENIZER, temperature=.7)


class Deaf(Faulty):
    "A server without /tokenize."
    def respond(self, body):
        if self.path == "/tokenize": return Handler.send(self, 404, {"error": "no"})
        super().respond(body)


def test_without_tokenize_the_pieces_are_compared():
    s = serve(); s.RequestHandlerClass = Deaf
    with s:
        remote(s)
        with pytest.raises(RemoteError, match="tokenizer is not"): remote(s, load_tokenizer("tiny", "student"))
    def no_words(h, found):
        for e in entries(h, found)[1:]:
            for x in e.values(): x.pop("decoded_token")
    s = serve(no_words); s.RequestHandlerClass = Deaf
    with s, pytest.raises(RemoteError, match="verify=False"): remote(s)


def test_a_server_that_is_slow_is_left_after_the_time_out():
    def slow(h, found): time.sleep(1.5)
    with serve(slow) as s, pytest.raises(RemoteError, match="no answer within 0.3 s.*2 tries"): remote(s, timeout=.3, retries=1, verify=False).api.prompt_entries(PROMPTS[0], 0)


def test_a_key_is_sent_and_a_redirect_is_not_followed(monkeypatch):
    with serve(key="abc") as s:
        with pytest.raises(RemoteError, match="401.*XTOKD_TEACHER_KEY"): remote(s)
        monkeypatch.setenv("XTOKD_TEACHER_KEY", "abc")
        assert "abc" not in repr(remote(s))
    def away(h, found): return put(h, 307, {}, [("Location", "http://elsewhere/v1")])
    with serve(away) as s, pytest.raises(RemoteError, match="redirects to http://elsewhere"): remote(s).api.prompt_entries(PROMPTS[0], 0)


def test_requests_go_out_together_but_no_faster_than_the_rate():
    together, most = [0], [0]
    lock = threading.Lock()
    class Counting(Faulty):
        def respond(self, body):
            with lock: together[0] += 1; most[0] = max(most[0], together[0])
            time.sleep(.05)
            with lock: together[0] -= 1
            super().respond(body)
    s = serve(); s.RequestHandlerClass = Counting
    with s:
        remote(s, concurrency=4, verify=False).score_responses(PROMPTS * 3, RESPONSES * 3, 0)
        assert 2 <= most[0] <= 4
        t = RemoteTeacher(s.url, VOCAB, rate=20, verify=False)
        began = time.monotonic(); t.score_responses(PROMPTS * 2, RESPONSES * 2, 0)
        assert time.monotonic() - began > 4 / 20


PAIR = Pair(load_tokenizer("tiny"), TOKENIZER)
LOCAL = [("sampled", {}), ("opd", {}), ("minillm", {}), ("dpca", {}), ("alm", {"debias": "none", "gamma": None}), ("uld", {"top_k": 12}), ("ctpd", {"weights": "none"}), ("compass", {}), ("strict", {"top_k": 12, "support": "teacher"}), ("cover", {"teacher_top_k": 12, "max_unknown": 1.})]


@pytest.fixture(scope="module")
def samples():
    s, t = load_side("tiny", "student"), load_side((TEACHER, TOKENIZER), "teacher")
    return generate_samples(load_prompts("tiny", 4), s, t, DistillConfig(max_new_tokens=24, progress=False), seed=0)


def pair_batch(samples, name):
    "A batch of samples as an objective of that name reads it: the tiny student, TEACHER's logits."
    own, ids = [s.student_ids for s in samples], [s.teacher_ids for s in samples]
    student = response_logits(load_model("tiny", device="cpu"), [s.student_prompt_ids for s in samples], own)
    extra = {k: [torch.full((len(x),), -1.) for x in (ids if k == "weak_logp" else own)] for k in ("weak_logp", "reference_logp")}
    return PairBatch.from_logits(PAIR, own, ids, [l.clone().requires_grad_() for l in student], response_logits(TEACHER, [s.teacher_prompt_ids for s in samples], ids), preferences=[1, -1, 1, -1], text_source="reference" if name == "ctpd" else "student", **extra)


def hears_the_same(remote, samples, name, knobs):
    "The same losses from the rows of a RemoteTeacher as from TEACHER's."
    obj, b = objective(name, **knobs), pair_batch(samples, name)
    far, bad = remote.score_responses([s.teacher_prompt_ids for s in samples], [s.teacher_ids for s in samples], obj.teacher_top_k)
    here, there = obj(b), obj(replace(b, teacher=far))
    assert bad == 0 and here.num_units == there.num_units > 0 and torch.allclose(here.token_loss, there.token_loss, atol=1e-4) and abs(float((here.loss - there.loss).detach())) < 1e-4


@pytest.mark.parametrize("name, knobs", LOCAL, ids=lambda x: x if isinstance(x, str) else "")
def test_every_objective_that_can_hears_the_same_over_the_wire(samples, name, knobs):
    assert objective(name, **knobs).teacher_access_for(PAIR) in ("sampled", "top_k")
    with serve(*PASSING, times=1) as s: hears_the_same(remote(s, retries=20), samples, name, knobs)


SMALL = dict(max_steps=2, batch_size=4, max_new_tokens=24, eval_size=4, eval_log_samples=1, progress=False, micro_batch_size=2)


def same_run(near, far):
    "Steps and evaluation of two runs agree, to what float32 rounds."
    for a, b in zip(near.steps, far.steps): assert abs(a["loss"] - b["loss"]) < 1e-4 and a["coverage"] == b["coverage"] and abs(a["grad_norm"] - b["grad_norm"]) < 1e-3 * a["grad_norm"]
    assert len(far.steps) == 2 and abs(near.evals[-1]["rkl_per_byte"] - far.evals[-1]["rkl_per_byte"]) < 1e-3


def test_a_run_with_a_served_teacher_is_the_run_with_the_local_one(tmp_path):
    config = lambda name: DistillConfig(**SMALL, output_dir=str(tmp_path/name))
    near = Distiller("tiny", "tiny", "tiny", "sampled", config("near")).fit()
    with serve(*PASSING, times=1) as s:
        t = remote(s, retries=20)
        far = Distiller("tiny", t, "tiny", "sampled", config("far")).fit()
    same_run(near, far)
    assert s.seen


def test_cover_learns_from_the_most_likely_tokens_of_a_served_teacher(tmp_path):
    how = ("cover", {"teacher_top_k": 12})
    config = lambda name: DistillConfig(**SMALL, output_dir=str(tmp_path/name))
    near = Distiller("tiny", "tiny", "tiny", how, config("near")).fit()
    with serve() as s: far = Distiller("tiny", remote(s), "tiny", how, config("far")).fit()
    same_run(near, far)


def test_objectives_that_read_whole_rows_are_refused_before_training(tmp_path):
    with serve() as s, pytest.raises(ValueError, match="'cover' reads whole rows.*sampled"): Distiller("tiny", remote(s), "tiny", "cover", DistillConfig(**SMALL, output_dir=str(tmp_path/"a")))
    assert not (tmp_path/"a").exists()


def test_a_served_teacher_is_named_by_its_url_and_a_run_goes_on(tmp_path):
    with serve() as s:
        config = DistillConfig(**SMALL | {"max_steps": 1, "output_dir": str(tmp_path/"a")})
        Distiller("tiny", f"{s.url}#{TOKENIZER.name_or_path}", "tiny", "sampled", config).fit()
        run = Distiller.from_run(tmp_path/"a", config=replace(config, max_steps=2)).fit(resume=True)
    assert [x["step"] for x in run.steps] == [1, 2]


def test_the_served_teacher_writes(tmp_path):
    with serve() as s:
        t = remote(s)
        assert t.generate(PROMPTS, 6, 0.) == generate_responses(TEACHER, VOCAB, PROMPTS, 6, 0.)
        run = Distiller("tiny", t, "tiny", "sft", DistillConfig(**SMALL, output_dir=str(tmp_path/"a"))).fit()
    assert len(run.steps) == 2 and run.steps[-1]["costs"]["teacher_tokens_written"] > 0


def test_a_number_that_is_not_known_counts_against_the_run(tmp_path):
    with serve(left_out) as s, pytest.raises(FloatingPointError, match="more than 1 %.*engine"): Distiller("tiny", remote(s), "tiny", "sampled", DistillConfig(**SMALL | {"eval_size": 0}, output_dir=str(tmp_path/"a"))).fit()


def test_the_command_line_learns_from_a_served_teacher(tmp_path):
    from xtokd.cli.commands import main
    with serve() as s:
        args = ["distill", "--teacher", s.url, "--objective", "sampled", "--max-steps", "1", "--batch-size", "4", "--eval-size", "0", "--no-progress", "--output-dir", str(tmp_path/"a")]
        assert main(args) == 1 and main([*args, "--teacher-tokenizer", TOKENIZER.name_or_path]) == 0


def test_a_dry_run_tells_what_a_served_teacher_leaves_unknown(tmp_path):
    from xtokd.train.dry_run import forecast
    def plan(k):
        config = DistillConfig(**SMALL | {"eval_size": 0, "batch_size": 8, "max_new_tokens": 12}, output_dir=str(tmp_path/"never"))
        with serve() as s: return forecast(Distiller("tiny", remote(s), "tiny", ("cover", dict(teacher_top_k=k)), config))
    few, many = plan(2), plan(20)
    assert few.coverage["unknown_mass"] > many.coverage["unknown_mass"] >= 0 and few.coverage["unknown_mass"] > .01
    assert few.memory["rows"] < many.memory["rows"] and "that is unknown" in repr(few)
    config = DistillConfig(**SMALL | {"eval_size": 0, "batch_size": 8, "max_new_tokens": 12}, output_dir=str(tmp_path/"never"))
    local = forecast(Distiller("tiny", "tiny", "tiny", ("cover", dict(teacher_top_k=2)), config))
    assert local.coverage["unknown_mass"] == pytest.approx(few.coverage["unknown_mass"], abs=1e-4), "the same rows, served or not"


def test_much_unknown_mass_is_a_warning_that_names_the_setting(tmp_path, monkeypatch):
    from xtokd.train import dry_run
    monkeypatch.setattr(dry_run, "LARGE_UNKNOWN", .001)
    config = DistillConfig(**SMALL | {"eval_size": 0, "batch_size": 8}, output_dir=str(tmp_path/"never"))
    with serve() as s: told = dry_run.forecast(Distiller("tiny", remote(s), "tiny", ("cover", dict(teacher_top_k=2)), config))
    assert any("gives the 2 largest log-probs of a row. Raise teacher_top_k" in w for w in told.warnings)


def test_the_doctor_reads_the_tokenizer_of_a_served_teacher(capsys):
    from xtokd.cli.commands import main
    assert main(["doctor", "tiny", f"http://127.0.0.1:1/v1#{TOKENIZER.name_or_path}"]) == 0
    assert main(["doctor", "tiny", "http://127.0.0.1:1/v1"]) != 0 and "URL#TOKENIZER" in capsys.readouterr().err
    with serve() as s:
        args = ["doctor", "tiny", s.url, "--dry-run", "--teacher-tokenizer", TOKENIZER.name_or_path, "--objective", "cover", "--objective-arg", "teacher_top_k=5", "--max-steps", "2", "--batch-size", "4", "--eval-size", "0", "--max-new-tokens", "8", "--no-progress"]
        assert main(args) == 0
    assert "that is unknown" in capsys.readouterr().out


# ---- a server that is away for a while ------------------------------------------------------------------------------------------
def settings(tmp_path, **kw): return DistillConfig(max_steps=2, batch_size=2, max_new_tokens=4, eval_size=0, output_dir=str(tmp_path / "run"), **kw)


@pytest.mark.parametrize("retries, ends", [(0, True), (12, False)])
def test_retries_of_a_run_outlast_a_server_that_is_away(tmp_path, monkeypatch, retries, ends):
    "Its first eight answers are 503: with teacher_retries=0 the run ends and says what to raise, with 12 it is done."
    with serve(starting, times=8) as s:
        d = Distiller("tiny", f"{s.url}#{resolve('tiny', 'teacher')}", "tiny", "sampled", settings(tmp_path, teacher_retries=retries, teacher_timeout=30))
        assert (d.teacher.api.http.retries, d.teacher.api.http.timeout) == (retries, 30)
        monkeypatch.setattr(d.teacher.api.http, "sleep", lambda seconds: None)
        if ends:
            with pytest.raises(RemoteError, match="503.*in 1 tries"): d.fit()
        else: assert d.fit().finished and s.left[starting] == 0


def test_a_server_that_does_not_listen_for_a_while(tmp_path):
    "Nothing listens at its port for the first second; the client waits, and the message of one without patience names the setting."
    with serve() as s: port = int(s.url.split(":")[2].split("/")[0])
    url = f"http://127.0.0.1:{port}/v1"
    with pytest.raises(RemoteError, match="teacher_retries .--teacher-retries"): RemoteTeacher(url, VOCAB, retries=0)
    def come_back():
        time.sleep(1.)
        back.append(serve(port=port))
        back[0].__enter__()
    back, thread = [], threading.Thread(target=come_back)
    thread.start()
    try: assert RemoteTeacher(url, VOCAB, retries=8).score_responses(PROMPTS, RESPONSES)[1] == 0
    finally:
        thread.join()
        back[0].__exit__(None, None, None)


def test_the_timeout_of_a_run(tmp_path):
    def slow(h, found): time.sleep(.6)
    with serve(slow) as s:
        d = Distiller("tiny", f"{s.url}#{resolve('tiny', 'teacher')}", "tiny", "sampled", settings(tmp_path, teacher_retries=0, teacher_timeout=.2))
        with pytest.raises(RemoteError, match="no answer within 0.2 s.*--teacher-timeout"): d.fit()


def test_timeout_and_retries_on_the_command_line(tmp_path):
    from xtokd.cli.commands import main
    with serve() as s:
        assert main(["distill", "--student", "tiny", "--teacher", s.url, "--teacher-tokenizer", str(resolve("tiny", "teacher")), "--teacher-timeout", "90.5", "--teacher-retries", "2", "--max-steps", "1",
                     "--batch-size", "2", "--max-new-tokens", "4", "--eval-size", "0", "--objective", "sampled", "--output-dir", str(tmp_path / "run")]) == 0
    config = Run(tmp_path / "run").config
    assert (config["teacher_timeout"], config["teacher_retries"]) == (90.5, 2)
    for name, value in (("teacher_timeout", 0), ("teacher_retries", -1), ("teacher_retries", 1.5)):
        with pytest.raises(ValueError, match=name): DistillConfig(**{name: value})
