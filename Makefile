.PHONY: check format test

check:
	ruff format --check .
	ruff check .
	mypy harness
	lint-imports

format:
	ruff format .
	ruff check --fix .

test:
	scripts/test
