"""The grid with Ray Tune: two sizes x two synthetic ratios; one trial a chain of trainer_generate.py.

Usage: python ray_tune.py [--generations G] [--bf16] [--sizes tiny small] [--ratios 0.5 1.0]
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import ray
from ray import tune


def trial(config):
    """One chain; every generation is a report."""
    import trainer_generate

    with tempfile.TemporaryDirectory() as folder:
        chain = trainer_generate.chain(
            config["size"], config["ratio"], config["generations"], folder, config["bf16"]
        )
        for result in chain:
            tune.report(result)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 1.0])
    options = parser.parse_args()
    path = [str(Path(__file__).parent), *sys.path]
    # Without an address it would join whatever Ray runs on this machine.
    env = {"env_vars": {"PYTHONPATH": ":".join(filter(None, path))}}
    ray.init(address="local", include_dashboard=False, runtime_env=env)
    space = {
        "size": tune.grid_search(options.sizes),
        "ratio": tune.grid_search(options.ratios),
        "generations": options.generations,
        "bf16": options.bf16,
    }
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space=space,
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        failed = False
        for result in tuner.fit():
            failed |= result.error is not None
            rows = [] if result.metrics_dataframe is None else result.metrics_dataframe["test/nll"].tolist()
            about = {"size": result.config["size"], "ratio": result.config["ratio"]}
            print(
                json.dumps({**about, "test/nll": rows, "error": str(result.error or "") or None}), flush=True
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
