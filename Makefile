# Everything is set up by the targets themselves, on a fresh Debian or Ubuntu, as root.
.PHONY: demo test soak bench lint pages install clean help
PYTHON ?= python3
PREFIX ?= /usr/local
export PYTHON

help:
	@echo "make demo   a real guest outlives its uplink, in private network namespaces (about two minutes)"
	@echo "make test   all tests: real kernel, real QEMU guests"
	@echo "make soak   the long ones: random operations, kills at every step, fuzzing (about an hour)"
	@echo "make bench  figures against floor and peers, with a report in bench/out (about ten minutes)"
	@echo "make lint   ruff, mypy --strict, import arrows, an audit of the Python packages"
	@echo "make pages  man pages and completion anew, from the commands' help and docs"
	@echo "make install  into PREFIX (/usr/local), for packagers also DESTDIR; the dependencies have to be there"

demo: .venv/.runtime
	@.venv/bin/evertap demo $(DEMO)

test: .venv/.dev
	@.venv/bin/python -m pytest $(TESTS)

soak: .venv/.dev
	@.venv/bin/python -m pytest -m soak $(TESTS)

bench: .venv/.bench
	@.venv/bin/python -m bench $(BENCH)

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python tools/audit

pages: .venv/.dev
	PYTHONPATH=src .venv/bin/python tools/pages.py

install:
	$(PYTHON) -m pip install --no-deps --no-build-isolation --root=$(or $(DESTDIR),/) --prefix=$(PREFIX) .
	install -D -m 644 packaging/systemd/evertap.service $(DESTDIR)$(PREFIX)/lib/systemd/system/evertap.service
	install -D -m 644 packaging/systemd/evertap.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/evertap.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/network packaging/networkd/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/udev/rules.d packaging/udev/70-evertap.rules
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 packaging/man/*.1
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man5 packaging/man/*.5
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man8 packaging/man/*.8
	install -D -m 644 packaging/completion/bash/evertap $(DESTDIR)$(PREFIX)/share/bash-completion/completions/evertap
	install -D -m 644 packaging/completion/zsh/_evertap $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_evertap
	install -D -m 644 packaging/completion/fish/evertap.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/evertap.fish

.venv/.runtime: pyproject.toml $(wildcard constraints*.txt) tools/setup
	@tools/setup runtime

.venv/.dev: pyproject.toml $(wildcard constraints*.txt) tools/setup
	@tools/setup dev

.venv/.bench: pyproject.toml $(wildcard constraints*.txt) tools/setup
	@tools/setup bench

clean:
	rm -rf .venv .cache
