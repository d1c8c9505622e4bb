# Each verb is a script below scripts/; the scripts run from any directory.
.DEFAULT_GOAL := help
.PHONY: help demo bench scale build release man unit test soak-tests exhaustive lab lint verdict mutants mutate view startup chaos conformance fuzz vuln tools clean

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\): ## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## play four acts on a real IPVS kernel: a leak, a policy, live connections, and why
	@scripts/demo.sh

build: ## build the programs into bin/
	@scripts/build.sh

release: ## build for nodes of amd64 and arm64, and podmarkctl for macOS, into directories of bin/
	@scripts/build.sh linux/amd64 linux/arm64 darwin/amd64 darwin/arm64

man: ## write the manual pages into bin/man
	@scripts/man.sh

unit: ## run what needs no root and no kernel feature, within a minute (PKG=./pkg/desired RUN=regexp)
	@scripts/unit.sh

soak-tests: ## run 'make test' three times beside four busy loops (TIMES= LOOPS= PKG=./pkg/agent/...)
	@scripts/soak-tests.sh

exhaustive: ## run all of which 'make test' does a share on this machine's kernel (PKG=./plugins/podmark RUN=regexp)
	@scripts/exhaustive.sh

test: ## run the tests: on this machine's kernel, then a share in the lab
	@scripts/test.sh

lab: ## run all of the lab's tests, and no others (RUN=regexp V=1), on a real IPVS kernel under QEMU
	@scripts/lab-test.sh

conformance: ## have cyclonus judge all of NetworkPolicy by packets, for hours (ONLY=pod-ip EVERY=10)
	@scripts/conformance.sh

bench: ## measure ADDs, packets, streams and policy changes beside others (ONLY=add,live SIZES= ROUNDS=)
	@scripts/bench.sh

scale: ## measure podmarkd in a simulated cluster (ARGS="-pods 150000 -nodes 5000 -local 30 -mix few-cluster-wide")
	@scripts/scale.sh $(ARGS)

verdict: ## compare 1,000,000 random packets with the model, on all backends (ROUNDS=)
	@scripts/verdict.sh

mutants: ## take out each static rule in turn, and have random packets find out (RUN=)
	@scripts/mutants.sh

mutate: ## change the code in small ways that matter, and have the unit tests find out (RUN=regexp JOBS=2)
	@scripts/mutate.sh

view: ## follow a random API server for 1,000,000 steps, and compare with the model (STEPS= SEED=)
	@scripts/view.sh

startup: ## start 1,000 pods in each way while clients try what is forbidden (STARTS=)
	@scripts/startup.sh

chaos: ## kill plugins and podmarkd while pods come and go, and flush rules, for an hour (LENGTH=)
	@scripts/chaos.sh

lint: ## check format, vet, staticcheck, the rules of .golangci.yml, shellcheck and package dependencies
	@scripts/lint.sh

fuzz: ## run every fuzz test for a while (FUZZTIME=10s JUDGETIME=3m RUN=regexp)
	@scripts/fuzz.sh

vuln: ## look for known vulnerabilities (needs vuln.go.dev)
	@scripts/vuln.sh

tools: ## build the CNI plugins and linters that tests and checks use
	@scripts/tools.sh

clean: ## remove what the other verbs built; the lab's kernel stays in the user's cache
	rm -rf bin
