"""Clients that are generated from `/docs.json` compile and work; skipped without the generators (`make clients` installs them)."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from abstain.service.predict.table_bodies import MEDIA_TYPES
from tests.helpers.processes import PATIENCE

PYTHON = """
import sys
from generated import Client, errors, models, types
from generated.api.models import get_model, list_models
from generated.api.open_inference import infer
from generated.api.predictions import predict

client = Client(sys.argv[1])
body = models.PredictInputs(inputs=[[0.0] * 64, [16.0] * 64], model="digits", percentile=95.0)
found = predict.sync(client=client, body=body)
assert isinstance(found, models.PredictResponse), found
assert isinstance(found.predictions[0].scores["std"], models.Score)
images = models.PredictInputs(inputs=[[[0.0] * 8] * 8], model="digits", fields=["label", "reject"])
few = predict.sync(client=client, body=images)
assert few.predictions[0].label == found.predictions[0].label and few.predictions[0].entropy is types.UNSET
number = predict.sync(client=client, body=models.PredictInputs(inputs=[[0.5]], model="wave")).predictions[0]
assert number.label is types.UNSET and isinstance(number.std, float)
wrong = predict.sync_detailed(client=client, body=models.PredictInputs(inputs=[[0.5]], model="nope"))
assert wrong.status_code == 404 and isinstance(wrong.parsed, models.Error) and wrong.parsed.where == "model"
assert [one.name for one in list_models.sync(client=client).models] == ["digits", "wave"]
assert get_model.sync("digits", client=client).max_rows == 10_000
tensor = models.InferInput(name="inputs", shape=[1, 1], datatype=models.InferInputDatatype.FP32, data=[0.5])
(mean,) = [one for one in infer.sync("wave", client=client, body=models.InferRequest([tensor])).outputs if one.name == "mean"]
table = Client(sys.argv[2])
nurse = models.Record.from_dict({"age": None, "job": "nurse", "night": True, "since": "2019-03-01"})
named = predict.sync(client=table, body=models.PredictRecords(records=[nurse], fields=["label", "reject"]))
listed = models.PredictTable(columns=["since", "night", "job", "age"], data=[["2019-03-01", True, "nurse", None]])
assert predict.sync(client=table, body=listed).predictions[0].label == named.predictions[0].label
age, job, *others = get_model.sync("crew", client=table).columns
assert age.range_[0] < age.range_[1] and job.categories == ["1", "baker", "nurse"] and job.unseen == "reject", (age, job)
print(found.predictions[0].label, found.predictions[0].reject, mean.data[0])
"""
TYPESCRIPT = """
import type { components, paths } from "./api.js";

declare const process: { argv: string[] };
type Answer = paths["/predict"]["post"]["responses"]["200"]["content"]["application/json"];
type Refusal = paths["/predict"]["post"]["responses"]["404"]["content"]["application/json"];

async function predict(
  body: components["schemas"]["PredictRequest"], url = process.argv[2] + "/predict",
): Promise<Response> {
  const headers = { "Content-Type": "application/json" };
  return fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
}

const answer: Answer = await (await predict({ inputs: [new Array(64).fill(0)], model: "digits", percentile: 95 })).json();
const refusal: Refusal = await (await predict({ inputs: [[0]], model: "nope" })).json();
const row: components["schemas"]["Record"] = { age: null, job: "nurse", night: true, since: "2019-03-01" };
const url = process.argv[3] + "/predict";
const named: Answer = await (await predict({ records: [row], fields: ["label", "reject"] }, url)).json();
const { age, ...rest } = row;
const data = [[age ?? null, ...Object.values(rest)]];
const listed: Answer = await (await predict({ columns: ["age", ...Object.keys(rest)], data }, url)).json();
if (listed.predictions[0]?.label !== named.predictions[0]?.label) throw new Error("other answers");
const reject: boolean | undefined = answer.predictions[0]?.reject;
console.log(answer.predictions[0]?.label, reject, refusal.where, WRONG);
"""


OPTIONS = {
    "strict": True,
    "noUncheckedIndexedAccess": True,
    "target": "es2022",
    "module": "nodenext",
    "lib": ["es2022", "dom"],
    "types": [],
}


def tool(name: str) -> str:
    """The path of a program; the test is skipped without it."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed; make clients installs it")
    return found


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    words = list(map(str, command))
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.fixture
def document(server, tmp_path):
    """The file of the document that the server sends, and the first predictions of the server."""
    path = tmp_path / "docs.json"
    path.write_bytes(httpx.get(f"{server.url}/docs.json", timeout=PATIENCE).content)
    return path


def expected(server) -> dict:
    """The prediction that the clients ask for."""
    body = {"inputs": [[0.0] * 64], "model": "digits", "percentile": 95}
    return httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE).json()["predictions"][0]


def test_a_client_of_openapi_python_client(server, crew_url, document, tmp_path):
    """It warns only that it leaves out the bodies that are tables, and its typed calls predict."""
    generator = Path(tool("openapi-python-client"))
    options = ["--path", document, "--output-path", tmp_path / "generated", "--meta", "none"]
    made = run(generator, "generate", *options, folder=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    warned = re.findall(r"WARNING parsing ([^\n]*)\s+([^\n]*)", made.stdout + made.stderr)
    left_out = [f"Unsupported content type {media_type}" for media_type in MEDIA_TYPES]
    assert warned == [("POST /predict within predictions.", text) for text in left_out]
    (tmp_path / "ask.py").write_text(PYTHON)
    done = run(generator.parent / "python", "ask.py", server.url, crew_url, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    own = expected(server)
    assert done.stdout.split()[:2] == [own["label"], str(own["reject"])]


def test_a_client_of_openapi_typescript(server, crew_url, document, tmp_path):
    """It compiles in strict mode and predicts; a request with a null, which the server refuses, does not compile."""
    made = run(tool("openapi-typescript"), document, "-o", "api.ts", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    compiler, node = tool("tsc"), tool("node")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": ["ask.ts"]}))
    (tmp_path / "ask.ts").write_text(TYPESCRIPT.replace("WRONG", '""'))
    compiled = run(compiler, folder=tmp_path)
    assert compiled.returncode == 0, compiled.stdout
    done = run(node, "ask.js", server.url, crew_url, folder=tmp_path)
    own = expected(server)
    assert done.stdout.split() == [own["label"], str(own["reject"]).lower(), "model"], done.stderr
    (tmp_path / "ask.ts").write_text(TYPESCRIPT.replace("WRONG", "predict({ inputs: [[0]], percentile: null })"))
    refused = run(compiler, folder=tmp_path)
    assert "Type 'null' is not assignable to type 'number | undefined'" in refused.stdout
