# What a developer does here. Every target does its own set-up: into .venv and .cache, without root.

UV_VERSION := 0.13.9
STRIPE_CLI_VERSION := 1.52.0
CHECKOV_VERSION := 3.3.30
PIP_AUDIT_VERSION := 2.10.1

# Stamps: made once, and made again when what they are made from changes.
PACKAGES := .venv/.installed
STRIPE_CLI := .cache/stripe-cli/.installed-$(STRIPE_CLI_VERSION)
CHECKOV := .cache/checkov/.installed-$(CHECKOV_VERSION)
PIP_AUDIT := .cache/pip-audit/.installed-$(PIP_AUDIT_VERSION)

# A Python that is missing is said at once, not fetched from somewhere.
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: bench bundle chromium help demo local faults model test check audit words setup lock clean

help:  ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(PACKAGES)  ## Charge a few hundred customers in a storm and show Stripe's tally (KEEP=1: keep the stack running)
	@.venv/bin/python -m infra.local.demo $(if $(KEEP),--keep)

local: $(PACKAGES)  ## Run the whole stack on this machine until Ctrl-C
	@.venv/bin/python -m infra.local

faults: $(PACKAGES)  ## Let one storm blow over Paidonce and other ways to charge, and print the table (N=1000: orders)
	@.venv/bin/python -m tests.peers --charges $(or $(N),1000)

test: setup  ## Run every test, and check what they cover
	.venv/bin/python -m pytest -n 2 --dist worksteal tests/crash_points tests/model  # Apart: counting lines would double their minutes.
	.venv/bin/python -m pytest -n 2 --dist worksteal --cov --cov-report= --ignore tests/crash_points --ignore tests/model
	.venv/bin/coverage report --include 'shared/charge.py,shared/policy.py' --fail-under 100
	.venv/bin/coverage report --omit 'shared/charge.py,shared/policy.py' --fail-under 95

model: $(PACKAGES)  ## Explore everything that can happen to a charge, millions of states, and say what held (minutes)
	@.venv/bin/python -m tests.model

check: $(PACKAGES)  ## Lint, check the format and the types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

audit: $(CHECKOV) $(PIP_AUDIT)  ## Hold the deployment against checkov's rules (300 MB), the packages against PyPI's advisories
	.cache/checkov/bin/checkov --directory infra/terraform --framework terraform --compact --quiet
	.cache/pip-audit/bin/pip-audit --strict --requirement requirements.lock --disable-pip --require-hashes --progress-spinner off

bundle: $(PACKAGES)  ## Write dist/paidonce.zip, which Terraform deploys
	@.venv/bin/python -m infra.bundle

bench: $(PACKAGES)  ## Measure what a cold start takes, beside that of the libraries alone
	@.venv/bin/python -m infra.cold_start

words: $(PACKAGES)  ## Bring the translations up to date with the sentences in the code and in the templates
	@mkdir -p .local
	.venv/bin/pybabel --quiet extract --mapping-file shared/locale/babel.cfg --omit-header --add-location file \
		--sort-by-file --output-file .local/words.pot functions shared
	.venv/bin/pybabel --quiet update --input-file .local/words.pot --output-file shared/locale/de.po --locale de \
		--omit-header --ignore-obsolete --no-fuzzy-matching --width 120

setup: $(PACKAGES) $(STRIPE_CLI) chromium  ## Install what the rest needs (they all do it by themselves)

lock: $(PACKAGES)  ## Write requirements.lock anew from pyproject.toml
	.venv/bin/uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-header --quiet \
		--output-file requirements.lock

clean:  ## Remove all that was installed, built or recorded here
	rm -rf .venv .cache .local dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(PACKAGES): requirements.lock
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock
	@printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s/.venv/bin/python" -m shared.cli "$$@"\n' "$(CURDIR)" "$(CURDIR)" \
		> .venv/bin/paidonce && chmod +x .venv/bin/paidonce
	@touch $@

# In an environment of its own: it wants older packages than we do, and much room.
$(CHECKOV):
	python3 -m venv .cache/checkov
	.cache/checkov/bin/python -m pip install --quiet --disable-pip-version-check checkov==$(CHECKOV_VERSION)
	@touch $@

# In an environment of its own, so that it does not audit itself. --strict: what cannot be looked up is no pass.
$(PIP_AUDIT):
	python3 -m venv .cache/pip-audit
	.cache/pip-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==$(PIP_AUDIT_VERSION)
	@touch $@

# The browser in which the customer's page is tested.
chromium:
	@command -v chromium > /dev/null || { \
		[ "$$(id -u)" = 0 ] || { echo "Chromium is missing: install it, as root (apt-get install chromium)" >&2; exit 1; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium > /dev/null; }

# The official client of Stripe's API, which the tests drive our Stripe double with.
$(STRIPE_CLI):
	npm install --no-save --silent --prefix .cache/stripe-cli @stripe/cli@$(STRIPE_CLI_VERSION)
	@touch $@
