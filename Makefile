.PHONY: check format test

check:
	ruff format --check .
	ruff check .
	mypy harness
	lint-imports
	python -m pytest -q -n 0 tests/test_lineage.py -k golden

format:
	ruff format .
	ruff check --fix .

test:
	scripts/test
