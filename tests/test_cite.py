"""BibTeX of what was used: nothing is left out, nothing is made up."""

import inspect
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

import decentral
from decentral.algorithm import ALGORITHMS
from decentral.cli import main
from decentral.experiment.citing import RECALLED
from decentral.protocol import PROTOCOLS

ROOT = Path(__file__).parents[1]
REFERENCES = tomllib.loads(
    (ROOT / "decentral" / "experiment" / "references.toml").read_text(encoding="utf-8")
)
PAPERS, USES = REFERENCES["papers"], REFERENCES["uses"]


def keys(bibtex: str) -> list[str]:
    """The entries' keys; each entry is well formed."""
    assert bibtex.endswith("\n")
    assert "\\" not in bibtex
    entries = [line for line in bibtex.splitlines() if not line.startswith("%")]
    depth = 0
    for line in entries:
        assert not line.startswith("@") or depth == 0
        depth += line.count("{") - line.count("}")
        assert depth >= 0
    assert depth == 0
    found = re.findall(r"^@\w+\{(\w+),$", bibtex, re.MULTILINE)
    assert len(set(found)) == len(found)
    return found


def test_every_algorithm_and_protocol_has_a_paper_or_none_on_purpose():
    assert set(USES["algorithm"]) == set(ALGORITHMS)
    assert set(USES["protocol"]) == set(PROTOCOLS)
    assert [name for name, papers in USES["algorithm"].items() if not papers] == ["sgd", "faulty"]
    cited = {paper for table in USES.values() for papers in table.values() for paper in papers}
    assert cited == set(PAPERS)


def test_every_paper_is_one_the_code_refers_to():
    for key, registry in (("algorithm", ALGORITHMS), ("protocol", PROTOCOLS)):
        for name, papers in USES[key].items():
            docs = (registry[name].__doc__ or "") + (sys.modules[registry[name].__module__].__doc__ or "")
            for paper in papers:
                for author in PAPERS[paper]["authors"][:1]:
                    assert author in docs, f"{name}: {author}"
    package = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "decentral").rglob("*.py"))
    package += (ROOT / "docs" / "learned.md").read_text(encoding="utf-8")
    package = re.sub(r"\s+", " ", package)
    for name, paper in PAPERS.items():
        assert paper["known"] in ("read", "recalled"), name
        assert paper["authors"][0] in package, name
        if not paper["title"].startswith("("):
            assert paper["title"].split(":")[0].lower() in package.lower(), name
        if "year" in paper and "arxiv" not in paper:
            near = [package[m.start() : m.start() + 420] for m in re.finditer(paper["authors"][0], package)]
            assert any(str(paper["year"]) in words for words in near), name


class Ran:
    """What a result says of its run, without a run."""

    def __init__(self, algorithm, protocol, problem="own_data"):
        self.algorithm, self.protocol, self.problem, self.metrics = algorithm, protocol, problem, {}


def test_what_algorithms_and_protocols_are_made_of():
    gossip = decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 0.1}, compressor="sign")
    bibtex = decentral.cite(Ran(gossip, decentral.Poisson(), "mlp_digits"))
    assert keys(bibtex) == [
        "decentral", "jax2018github", "nabli2023a2cid2", "karimireddy2019errorfeedback", "nabli2023dadao",
        "alpaydin1998digits",
    ]  # fmt: skip
    assert "% for gossip, poisson\n@inproceedings{nabli2023a2cid2" in bibtex
    assert bibtex.count(RECALLED) == 2
    learned = {"kind": "learned", "meta_parameters": "mulo_small", "parametrization": "mup"}
    found = keys(decentral.cite(Ran(decentral.DPSGD(optimizer=learned), decentral.Rounds(mixing="base_k"))))
    assert found[2:] == [
        "lian2017dpsgd", "nedic2009subgradient", "metz2022learned", "therienmulo", "yang2022mup", "takezawa2023basek",
    ]  # fmt: skip
    found = keys(decentral.cite(Ran(decentral.SGD(feedback={"kind": "dfa"}), decentral.Server(max_delay=8))))
    assert found[2:] == [
        "nokland2016dfa",
        "launay2020dfascales",
        "agarwal2011delayed",
        "maranjyan2025ringmaster",
    ]


def test_what_is_the_users_own_is_said():
    @decentral.pytree
    class Mine(decentral.Algorithm):
        pass

    bibtex = decentral.cite(Ran(Mine(), decentral.Poisson()))
    assert bibtex.startswith("% Not of this package, so look for its paper yourself: Mine.\n")
    assert keys(bibtex) == ["decentral", "jax2018github", "nabli2023dadao", "nabli2023a2cid2"]


def test_specs_folders_and_names(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "spec.toml").write_bytes((ROOT / "experiments" / "quickstart.toml").read_bytes())
    assert main(["cite", str(folder)]) == 0
    found = capsys.readouterr().out
    expected = ["decentral", "jax2018github", "nabli2023dadao", "nabli2023a2cid2", "alpaydin1998digits"]
    assert sorted(keys(found)) == sorted(expected)
    assert sorted(keys(decentral.cite("quickstart"))) == sorted(expected)
    assert decentral.cite(folder) == decentral.cite(str(folder)) == found
    assert keys(decentral.cite(["petra", "mnist1d"]))[2:] == ["rivaud2025petra", "greydanus2024mnist1d"]
    (folder / "spec.toml").write_text("not a spec")
    assert main(["cite", str(folder)]) == 2
    assert "spec.toml" in capsys.readouterr().err


def test_a_sweep_is_cited_with_all_it_tried(tmp_path):
    source = {
        "algorithm": [{"kind": "gossip"}], "problem": {"kind": "mlp"}, "protocol": {"kind": "server"}, "topology": {"n": 4},
    }  # fmt: skip
    points = [{"problem.data": "mnist"}, {"problem.data": "mnist1d", "protocol.max_delay": 8}]
    runs = [{"id": f"{number:012x}", "set": point, "group": 0} for number, point in enumerate(points)]
    sweep = {
        "name": "a", "source": source, "axes": {}, "search": "list", "seeds": 1, "x64": False, "provenance": {}, "runs": runs,
    }  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    found = keys(decentral.cite(tmp_path))
    assert sorted(found[2:]) == [
        "agarwal2011delayed", "greydanus2024mnist1d", "lecun1998mnist", "maranjyan2025ringmaster", "nabli2023a2cid2",
    ]  # fmt: skip


def test_arguments_make_it_another_paper():
    for spec, key in (
        ("stragglers", "maranjyan2025ringmaster"),
        ("stragglers", "chen2016backupworkers"),
        ("mulo/local_learned", "metz2022learned"),
        ("optical/dfa_ring", "nkland2016dfa"),
    ):
        assert key.replace("nkland", "nokland") in keys(decentral.cite(spec)), key


def test_what_it_is_asked_that_it_cannot_say(tmp_path, capsys):
    for wrong, said in (
        ("a2cid", "Did you mean 'a2cid2'"),
        (tmp_path, "manifest.json"),
        (3, "a result, a run"),
    ):
        with pytest.raises(decentral.InvalidInput, match=said):
            decentral.cite(wrong)
    assert main(["cite", "nothing of the kind"]) == 2
    assert capsys.readouterr().err.count("\n") < 4


def test_this_package_is_cited_as_its_citation_file_says():
    lines = dict(
        re.findall(
            r"^(title|version|license): \"?(.+?)\"?$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
        )
    )
    bibtex = decentral.cite([])
    for word in lines.values():
        assert word in bibtex
    assert "{{The decentral developers}}" in bibtex
    assert keys(bibtex) == ["decentral", "jax2018github"]
    assert inspect.signature(decentral.cite).return_annotation == "str"
