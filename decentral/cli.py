"""The command line. Every command imports what it needs when it runs, so that --help costs nothing.

Exit status: 0 success, 2 bad input (one message, nothing written), 1 a run that failed.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
import warnings
from collections.abc import Sequence

from decentral.errors import DecentralError, InvalidInput, RunFailed, suggest

# NumPy's BLAS beside XLA's own threads: on few cores they get in each other's way (a 65 x 65 eigvalsh then takes a second).
# Read when NumPy is first imported, which the commands below do.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

LISTED = (
    "algorithms",
    "optimizers",
    "meta_parameters",
    "topologies",
    "networks",
    "problems",
    "protocols",
    "hardware",
    "experiments",
    "projections",
    "meta_trainings",
)
TABLE_RUNS = 32
"""Finished runs of a sweep up to which their table is printed."""
TOLD = 5
"""Failed runs of a sweep that are told with their reasons."""


def run(options: argparse.Namespace) -> None:
    """Run a spec, print the table of results and where the plot is."""
    from decentral.experiment.run import run as run_spec
    from decentral.experiment.spec import load_spec

    spec = load_spec(options.spec, overrides=options.set, seeds=options.seeds, smoke=options.smoke)
    _allow_float64(spec.dtype == "float64")
    finished = run_spec(
        spec,
        out=options.out,
        overwrite=options.overwrite,
        progress=sys.stderr.isatty(),
        command_line=options.command_line,
    )
    _report(finished)


def sweep(options: argparse.Namespace) -> int:
    """Run a spec with many settings, or say what that would be; 1 if not one run finished."""
    from decentral.experiment.axes import parse_axes, read_points

    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "3"
    )  # then compiled programs are kept: see executors.Inline
    if (
        options.executor != "inline"
    ):  # this process has nothing to compute and leaves the accelerator's memory alone
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from decentral.experiment.sweeps import plan_sweep, run_plan

    plan = plan_sweep(
        options.spec,
        parse_axes(options.set),
        points=None if options.list is None else read_points(options.list),
        draws=options.random,
        seeds=options.seeds,
        smoke=options.smoke,
        out=options.out,
        merge=not options.no_merge,
        retry=options.retry,
        command_line=options.command_line,
    )
    if plan.folded:
        words = "1 point is" if plan.folded == 1 else f"{plan.folded} points are"
        print(f"{words} the same run as another one", file=sys.stderr)
    if options.dry_run:
        from decentral.experiment.forecast import forecast

        print(forecast(plan).text(), end="")
        return 0
    found = run_plan(plan, executor=options.executor, progress=sys.stderr.isatty())
    return _report_sweep(found, plan.asked)


def resume(options: argparse.Namespace) -> None:
    """Take up a run, or a meta-training, that was cut off."""
    from decentral.experiment.folder import META_TRAINING, read_json, require_run
    from decentral.experiment.sweep_folder import is_sweep

    if is_sweep(options.dir):
        advice = "A sweep goes on when it is asked for again: decentral sweep with the same words."
        raise InvalidInput("DIR", options.dir, "a run folder", advice)
    manifest = read_json(require_run(options.dir) / "manifest.json", "manifest")
    _allow_float64(manifest.get("flags", {}).get("x64", False))
    if manifest.get("kind") == META_TRAINING:
        from decentral.experiment.meta import resume_meta_training

        _report_meta_training(resume_meta_training(options.dir, progress=sys.stderr.isatty()))
        return
    from decentral.experiment.run import resume as resume_run

    _report(resume_run(options.dir, progress=sys.stderr.isatty()))


def meta_train(options: argparse.Namespace) -> None:
    """Meta-train a learned optimizer; print the meta-loss and where the meta-parameters are."""
    from decentral.experiment.meta import run_meta_training

    finished = run_meta_training(
        options.spec,
        overrides=options.set,
        smoke=options.smoke,
        out=options.out,
        overwrite=options.overwrite,
        devices=options.devices,
        progress=sys.stderr.isatty(),
        command_line=options.command_line,
    )
    _report_meta_training(finished)


def compare(options: argparse.Namespace) -> None:
    """Print a table of finished runs."""
    from decentral.experiment.compare import compare as table

    print(table(options.dir, options.format, hours=options.hours), end="")


def cite(options: argparse.Namespace) -> None:
    """Print BibTeX."""
    from decentral.experiment.citing import cite as bibtex

    print(bibtex(options.what), end="")


def report(options: argparse.Namespace) -> None:
    """Write an HTML file about a folder, and open it if asked."""
    from decentral.experiment.reports import report as write

    path = write(options.dir, project=options.project)
    print(path)
    if options.open:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            print("decentral: warning: no browser was found here; open the file yourself", file=sys.stderr)


def topology(options: argparse.Namespace) -> None:
    """Print the constants of a graph."""
    import json

    from decentral.experiment.overrides import packaged, parse_override, read_tables
    from decentral.topology import DIRECTED, TOPOLOGIES, load_network, named, named_directed, network_names

    graphs, networks = TOPOLOGIES | DIRECTED, network_names()
    if options.name in graphs or options.name in networks:
        given = dict(map(parse_override, options.set))
        arguments = {key.removeprefix("topology."): value for key, value in given.items()}
        arguments["kind"] = options.name
        if options.name in networks:
            arguments |= {"kind": "network", "name": options.name, "n": load_network(options.name).n}
    elif os.path.exists(options.name) or options.name in packaged("experiments"):
        tables = read_tables(options.name, overrides=options.set)
        arguments = tables.get("topology")
        if not isinstance(arguments, dict) or "kind" not in arguments:
            raise InvalidInput("topology", options.name, "a spec with a table [topology] and its kind")
        graph = graphs.get(str(arguments["kind"]))
        if graph and "seed" in inspect.signature(graph).parameters:
            arguments = {"seed": tables.get("seed", 0)} | arguments
    else:
        known = [*graphs, *networks, *packaged("experiments")]
        allowed = "a named graph or network, or a spec"
        raise InvalidInput("topology", options.name, allowed, suggest(options.name, known))
    if options.n is not None:
        arguments["n"] = options.n
    if options.rates is not None:
        arguments["rates"] = options.rates
    if "n" not in arguments:
        raise InvalidInput("topology.n", "nothing", "a whole number, at least 2", "How many workers? --n 16")
    if "rate" in arguments:
        raise InvalidInput("--set rate", arguments["rate"], "arguments of the graph", "Use --rate.")
    if arguments["kind"] in DIRECTED:  # messages, not exchanges: no rates
        summary = named_directed(**arguments).summary()
    else:
        chosen = named(**arguments, rate=options.rate)
        summary = chosen.summary()
        if arguments.get("rates", "uniform") != "uniform":
            arguments["rates"] = "uniform"
            uniform = named(**arguments, rate=options.rate)
            summary |= {"uniform_chi_1": uniform.chi_1, "uniform_chi_2": uniform.chi_2}
            for key, graph in (("", chosen), ("uniform_", uniform)):
                summary[f"{key}sqrt_chi_1_chi_2"] = math.sqrt(graph.chi_1 * graph.chi_2)
    if options.json:
        print(json.dumps(summary, indent=2))
        return
    units = summary.pop("units", [])
    width = max(map(len, summary))
    for key, value in summary.items():
        print(f"{key:<{width}}  {value:.6g}" if isinstance(value, float) else f"{key:<{width}}  {value}")
    for unit in units:
        workers = _ranges(unit["serves"])
        print(
            f"{unit['name']:<{width}}  {unit['device']}, serves workers {workers}; link: {unit['latency_s']:g} s, "
            f"{unit['bandwidth_bytes_per_s']:g} bytes/s one way"
        )


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted whole numbers in words: ``0-7, 9``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def trace(options: argparse.Namespace) -> None:
    """Print what happened in a run, or write it for Perfetto, or draw it."""
    from pathlib import Path

    from decentral.analysis.gantt import plot_gantt
    from decentral.analysis.timeline import trace_table, write_perfetto
    from decentral.engine.trace import Trace
    from decentral.experiment.folder import require_run
    from decentral.protocol import Recorded

    if Path(options.dir).is_file():
        traces = {Path(options.dir).stem.removeprefix("trace_"): Recorded(options.dir).trace}
    else:
        folder = require_run(options.dir)
        files = sorted(folder.glob("trace_*.npz"))
        if not files:
            raise InvalidInput(
                "DIR", str(folder), "a run that kept its trace", "This one ran with record.trace = false."
            )
        traces = {path.stem.removeprefix("trace_"): Trace.load(path) for path in files}
    if not options.perfetto and not options.gantt:
        print(trace_table(traces), end="")
    option, target = "--perfetto", options.perfetto
    try:
        if options.perfetto:
            write_perfetto(traces, options.perfetto)
            print(f"{options.perfetto}: open it at ui.perfetto.dev or chrome://tracing")
        option, target = "--gantt", options.gantt
        if options.gantt:
            if len(traces) > 1:
                advice = f"Name one of its files: {', '.join(f'trace_{name}.npz' for name in traces)}"
                raise InvalidInput("--gantt", f"{len(traces)} traces", "one trace to draw", advice)
            print(plot_gantt(next(iter(traces.values())), options.gantt))
    except OSError as error:
        raise InvalidInput(option, target, "a file that can be written", f"{error}.") from None


def project(options: argparse.Namespace) -> None:
    """Print what a model would cost on a cluster, and where its time goes."""
    import json

    from decentral.experiment import projection_report as room
    from decentral.experiment.projections import load_plan

    for option, target in (("--plot", options.plot), ("--pareto", options.pareto)):
        if target and os.path.splitext(target)[1].lower() not in (".png", ".pdf", ".svg"):
            raise InvalidInput(option, target, "a file name that ends in .png, .pdf or .svg")
    if options.pareto and not options.search:
        raise InvalidInput("--pareto", options.pareto, "with --search")
    plan = load_plan(options.spec, overrides=options.set)
    done = room.carry_out(plan)
    found = None
    if options.search:
        from decentral.cost.search import search

        found = search(
            plan.model,
            plan.layouts[0],
            plan.cluster,
            plan.algorithms[0],
            plan.conditions,
            devices=plan.devices,
        )
    if options.json:
        numbers = room.data(done)
        if found is not None:
            numbers["search"] = room.search_data(found)
        if options.sensitivity:
            numbers["sensitivity"] = room.sensitivity_data(done.projections)
        print(json.dumps(numbers, indent=2, allow_nan=False))
    else:
        print(room.text(done), end="")
        if options.sensitivity:
            print("\n" + room.sensitivity_text(done.projections), end="")
        if found is not None:
            print("\n" + room.search_text(plan, found), end="")
    if options.plot or options.pareto:
        from decentral.analysis.cost_plots import breakdown_figure, pareto_figure
        from decentral.analysis.plots import save_figure

        parts = {one.algorithm.label: one.parts for one in done.projections}
        for target, figure in (
            (options.plot, options.plot and breakdown_figure(plan.name, parts, room.WORDS)),
            (options.pareto, options.pareto and pareto_figure(plan.name, found or [])),
        ):
            if not target:
                continue
            try:
                save_figure(figure, target)
            except OSError as error:
                allowed = "a file that can be written"
                raise InvalidInput("--plot or --pareto", target, allowed, str(error)) from None
            print(target, file=sys.stderr if options.json else sys.stdout)


def figures(options: argparse.Namespace) -> int:
    """Run the experiments that are missing, draw all figures and write the table of claims."""
    from pathlib import Path

    from decentral.experiment.figures import RUNS, make_figures

    if options.jobs is not None and options.jobs < 1:
        raise InvalidInput("--jobs", options.jobs, "an integer >= 1")
    runs = Path(options.runs) if options.runs else RUNS
    out = Path(options.out) if options.out else None
    failed = make_figures(paper=options.paper, smoke=options.smoke, runs=runs, out=out, jobs=options.jobs)
    return 1 if failed else 0


def list_names(options: argparse.Namespace) -> None:
    """Print what there is, a line each."""
    rooms = [options.what] if options.what else LISTED
    for room in rooms:
        if len(rooms) > 1:
            print(f"{room}:")
        entries = _entries(room)
        width = max(map(len, entries), default=0)
        for name, line in entries.items():
            print(f"  {name:<{width}}  {line}")


def doctor(options: argparse.Namespace) -> int:
    """Check versions, devices and known faults."""
    from decentral.experiment.doctor import examine

    report, healthy = examine()
    print(report, end="")
    return 0 if healthy else 1


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    from decentral import __version__

    top = argparse.ArgumentParser(
        prog="decentral",
        description="Decentralized, asynchronous optimization: how well does it learn, and how fast would it be.",
        epilog="First steps: decentral run quickstart --smoke",
    )
    top.add_argument("--version", action="version", version=f"decentral {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(function, name: str, **words) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=words["help"], description=words.get("description", words["help"])
        )
        added.set_defaults(function=function)
        return added

    def overrides(added, example: str) -> None:
        added.add_argument(
            "--set",
            metavar="KEY=VALUE",
            nargs="+",
            action="extend",
            default=[],
            help=f"dotted keys and TOML values, e.g. {example}",
        )

    one = command(run, "run", help="run a spec and write a run folder")
    one.add_argument(
        "spec", metavar="SPEC", help="a TOML file, or a packaged experiment (decentral list experiments)"
    )
    overrides(one, "topology.n=64 algorithm.a2cid2.eta=0.1")
    one.add_argument("--out", metavar="DIR", help="the run folder (default: runs/NAME-001 and counting)")
    one.add_argument("--seeds", metavar="N", type=int, help="number of seeds")
    one.add_argument("--smoke", action="store_true", help="the spec's small version: seconds")
    one.add_argument("--overwrite", action="store_true", help="replace the run folder if it exists")

    one = command(
        sweep,
        "sweep",
        help="run a spec with many settings; asked again it runs what is missing",
        description="A grid of all values, a list of points, or random draws. Runs are named by what they are: asked again, a "
        "sweep runs what is missing, and asked for more it adds to what is there.",
    )
    one.add_argument(
        "spec", metavar="SPEC", help="a TOML file, or a packaged experiment (decentral list experiments)"
    )
    one.add_argument(
        "--set",
        metavar="KEY=V1,V2",
        nargs="+",
        action="extend",
        default=[],
        help="values of dotted keys with commas between them, e.g. topology.n=16,64 "
        "algorithm.lr=0.1,0.3; with --random also ranges: KEY=1e-3..1e-1:log",
    )
    way = one.add_mutually_exclusive_group()
    way.add_argument(
        "--list",
        metavar="FILE",
        help="these points: a CSV with a column per dotted key, a JSON list of objects, or TOML with [[point]] tables",
    )
    way.add_argument(
        "--random",
        metavar="N",
        type=int,
        help="N points drawn from the values and ranges, by the spec's seed",
    )
    one.add_argument("--seeds", metavar="N", type=int, help="number of seeds of each run")
    one.add_argument(
        "--executor",
        metavar="E",
        default="inline",
        help="inline, spawn:4, dask:4, dask:tcp://HOST:8786, dask:slurm?queue=Q, submitit?timeout_min=60 (default: inline)",
    )
    one.add_argument("--out", metavar="DIR", help="the sweep's folder (default: runs/NAME-sweep)")
    one.add_argument(
        "--dry-run", action="store_true", help="say which runs, how long and how large; write nothing"
    )
    one.add_argument("--smoke", action="store_true", help="the spec's small version")
    one.add_argument("--retry", action="store_true", help="run again what failed before")
    one.add_argument(
        "--no-merge",
        action="store_true",
        help="every run by itself (default: small runs of one shape are computed together)",
    )

    one = command(
        meta_train,
        "meta-train",
        help="meta-train a learned optimizer, and write a folder with its meta-parameters",
    )
    one.add_argument(
        "spec", metavar="SPEC", help="a TOML file, or a packaged one (decentral list meta_trainings)"
    )
    overrides(one, "pes.outer_steps=100 seed=1")
    one.add_argument("--out", metavar="DIR", help="the folder (default: runs/NAME-001 and counting)")
    one.add_argument("--smoke", action="store_true", help="the spec's small version: seconds")
    one.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    one.add_argument(
        "--devices",
        metavar="N",
        type=int,
        help="JAX devices to share the perturbations (default: all that can)",
    )

    one = command(
        resume, "resume", help="take up a run or a meta-training that was cut off, from its last checkpoint"
    )
    one.add_argument("dir", metavar="DIR", help="the run folder")

    one = command(compare, "compare", help="set finished runs side by side")
    one.add_argument("dir", metavar="DIR", nargs="+", help="run folders, and sweep folders")
    one.add_argument(
        "--format", choices=("text", "latex", "csv", "json"), default="text", help="of the table"
    )
    one.add_argument(
        "--hours", action="store_true", help="add the hours of wall time (CSV and JSON have them)"
    )

    one = command(
        cite, "cite", help="BibTeX of what a run used: algorithms, data sets, protocols, this package"
    )
    one.add_argument(
        "what",
        metavar="DIR|NAME",
        nargs="+",
        help="folders of runs or sweeps, specs, or names (decentral list)",
    )

    one = command(
        report, "report", help="write DIR/report.html: tables, plots and the timeline of a run, in one file"
    )
    one.add_argument("dir", metavar="DIR", help="the folder of a run, a sweep or a meta-training")
    one.add_argument("--open", action="store_true", help="show it in the browser")
    one.add_argument(
        "--project", metavar="SPEC", help="a projection to set beside it (decentral list projections)"
    )

    one = command(topology, "topology", help="constants of a graph: chi_1, chi_2, spectral gap, ...")
    one.add_argument(
        "name", metavar="NAME|SPEC", help="a named graph (decentral list topologies), or a spec file"
    )
    one.add_argument("--n", metavar="N", type=int, help="number of workers")
    one.add_argument("--rate", metavar="R", type=float, help="exchanges per worker and unit time (default 1)")
    one.add_argument(
        "--rates", metavar="WORD", help="how edges share it: uniform, degree, or optimal for chi_1 chi_2"
    )
    overrides(one, "degree=6 (with a spec: topology.degree=6)")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = command(trace, "trace", help="what happened in a run: counts, rates, utilisation, staleness")
    one.add_argument("dir", metavar="DIR|FILE", help="the run folder, or a trace file (npz, CSV)")
    one.add_argument(
        "--gantt", metavar="FILE", help="draw who computed and communicated when (PNG, PDF, SVG)"
    )
    one.add_argument(
        "--perfetto", metavar="FILE", help="write the events as Chrome trace JSON for ui.perfetto.dev"
    )

    one = command(
        project,
        "project",
        help="what a model would cost on a real cluster: time, MFU, memory, energy, money",
        description="The cost model: step time, tokens/s, MFU and HFU, memory, bytes, energy, where the time goes, how sure.",
    )
    one.add_argument(
        "spec", metavar="SPEC", help="a TOML file, or a packaged projection (decentral list projections)"
    )
    overrides(one, "cluster.devices=512 parallelism.dp=64")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--search", action="store_true", help="try all legal layouts; print those nothing beats")
    one.add_argument(
        "--sensitivity", action="store_true", help="print d log time / d log(each number of the hardware)"
    )
    one.add_argument("--plot", metavar="FILE", help="draw where the time goes (PNG, PDF, SVG)")
    one.add_argument("--pareto", metavar="FILE", help="with --search: draw throughput, memory and cost")

    one = command(list_names, "list", help="names a spec can use")
    one.add_argument("what", nargs="?", choices=LISTED, help="all of them by default")

    one = command(
        figures,
        "figures",
        help="run what is missing, draw the papers' figures and check their claims (needs a checkout)",
    )
    one.add_argument("--paper", metavar="P", help="only scripts whose name begins so: dadao, a2cid2, ...")
    one.add_argument("--runs", metavar="DIR", help="the run folders (default: runs/figures)")
    one.add_argument("--out", metavar="DIR", help="where the figures go (default: beside the run folders)")
    one.add_argument("--jobs", metavar="N", type=int, help="processes (default: one per core)")
    one.add_argument(
        "--smoke", action="store_true", help="the small versions: minutes, and no claim is judged"
    )

    command(doctor, "doctor", help="versions, devices, known faults")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    options.command_line = ["decentral", *arguments]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_once()
            status = options.function(options) or 0
        sys.stdout.flush()  # here, where a reader that has gone (head, less) is no error
        return status
    except RunFailed as error:
        print(f"decentral: the run failed\n{error}", file=sys.stderr)
        return 1
    except DecentralError as error:
        print(f"decentral: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("decentral: interrupted", file=sys.stderr)
        return 1


def _show_once():
    """A warning is for the person at the terminal: what, once, and not where in the code."""
    shown = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f"decentral: warning: {message}", file=sys.stderr)

    return show


def _allow_float64(wanted: bool) -> None:
    """float64 is switched on for a run that asks for it, unless the environment says no."""
    import jax

    if wanted and "JAX_ENABLE_X64" not in os.environ:
        jax.config.update("jax_enable_x64", True)


def _report(finished) -> None:
    from decentral.experiment.compare import compare
    from decentral.experiment.devices import is_first

    if not is_first():
        return

    print(compare([finished.folder]), end="")
    print(f"\nrun folder  {finished.folder}\nplot        {finished.folder / 'overview.png'}")
    if (finished.folder / "tuning.png").exists():
        print(f"tuning      {finished.folder / 'tuning.png'} (the values chosen are in spec.toml)")
    for name, result in finished.results.items():
        if "optimizer" in result.constants:
            share, meeting_s = (
                result.constants["optimizer"][k] for k in ("share_of_gradient", "after_meeting_s")
            )
            each = [f"{share:.2g} of a gradient's seconds to each gradient"] if share else []
            each += [f"{meeting_s:.2g} s to each meeting"] if meeting_s else []
            words = (
                "adds " + ", and ".join(each) if each else "takes no time here: no cluster is said, or a log"
            )
            print(f"{name}: its learned optimizer {words}")
    charts = sorted(path.name for path in finished.folder.glob("gantt_*.png"))
    for name, result in finished.results.items():
        for unit in result.units[0] if result.units else ():
            print(f"{name}: {unit.words}" + (" (first seed)" if len(result.units) > 1 else ""))
    if charts:
        print(
            f"timelines   {finished.folder / 'gantt_*.png'} ({len(charts)}: who computed and communicated when)"
        )


def _report_sweep(found, asked: Sequence[str]) -> int:
    """Print the table of a small sweep, what failed and why, and where all of it is."""
    from decentral.experiment.compare import compare

    mine = [run for run in found.runs if run.id in set(asked)]
    failed = [run for run in mine if run.status == "failed"]
    finished = len(mine) - len(failed)
    if finished and len(found.having("finished")) <= TABLE_RUNS:
        print(compare([found.folder]))
    print(f"{finished} of {len(mine)} runs finished, {len(failed)} failed")
    for run in failed[:TOLD]:
        print(f"failed        {run.id}  {run.label}\n              {run.failure['message']}")
    if len(failed) > TOLD:
        print(f"              and {len(failed) - TOLD} more")
    print(f"sweep folder  {found.folder}")
    if finished and len(found.having("finished")) > TABLE_RUNS:
        print(f"table         decentral compare {found.folder}")
    return 0 if finished else 1


def _report_meta_training(finished) -> None:
    trained, folder = finished.trained, finished.folder
    losses = trained.history["losses"]
    shown = min(20, len(losses))
    width = max(map(len, trained.tasks))
    print(
        f"{'task':<{width}}  loss of a window, mean over the first and the last {shown} of {len(losses)} outer steps"
    )
    for name, series in zip(trained.tasks, losses.T, strict=True):
        print(f"{name:<{width}}  {series[:shown].mean():.3f} -> {series[-shown:].mean():.3f}")
    print(f"\nrun folder       {folder}\nplot             {folder / 'meta_loss.png'}")
    print(f"meta-parameters  {folder / 'meta_parameters.npz'}")
    print('use them         optimizer = { kind = "learned", meta_parameters = "that path" }')


def _entries(room: str) -> dict[str, str]:
    """Name -> first line of what it says of itself."""
    if room in ("experiments", "projections", "meta_trainings"):
        import tomllib

        from decentral.experiment.overrides import packaged

        lines = {}
        for name, path in packaged(room).items():
            text = path.read_text()
            first = text.splitlines()[0] if text else ""
            lines[name] = (
                first.removeprefix("#").strip()
                if first.startswith("#")
                else tomllib.loads(text).get("name", "")
            )
        return lines
    if room == "networks":
        from decentral.topology import load_network, network_names

        return {name: load_network(path).description for name, path in network_names().items()}
    if room == "hardware":
        from decentral.hardware import DEVICES, OPTICAL_UNITS

        devices = {
            name: f"{d.vendor}, {d.memory_bytes / 1e9:.0f} GB ({d.tag})" for name, d in DEVICES.items()
        }
        return devices | {
            name: f"optical unit, {u.max_inputs:,} mirrors, {u.max_outputs:,} pixels ({u.tag})"
            for name, u in OPTICAL_UNITS.items()
        }
    if room == "meta_parameters":
        from decentral.learned.meta_parameters import SHIPPED, provenance

        origins = {name: provenance(name) for name in SHIPPED}
        return {
            name: o.get("source")
            or f"{o['by']} {o['name']}: {o['outer_steps']} outer steps, meta-loss {o['meta_loss']:.3g}"
            for name, o in origins.items()
        }
    if room == "topologies":
        from decentral.topology import DIRECTED, TOPOLOGIES

        registry = TOPOLOGIES | DIRECTED
    elif room == "optimizers":
        from decentral.algorithm.optimizer import optimizers

        registry = optimizers()
    elif room == "protocols":
        from decentral.protocol import PROTOCOLS as registry
    elif room == "problems":
        from decentral.experiment.spec import ROOMS

        registry = ROOMS["problem"]
    else:
        from decentral.algorithm import ALGORITHMS as registry
    return {name: (entry.__doc__ or "").strip().splitlines()[0] for name, entry in registry.items()}


if __name__ == "__main__":
    sys.exit(main())
