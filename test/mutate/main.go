// Command mutate makes each of the small changes of the list to podmark's code, one at a time,
// and has the unit tests of the package find it out, without root. It touches no file of the
// tree: the Go command compiles another one in its place (-overlay).
//
//	go run ./test/mutate -j 2 -run 'ident|whois'
//
// It prints one line a change, and exits with 1 where one survives.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// mutant is a small change that matters: To in the place of From, which its file has once.
type mutant struct {
	// Package is its directory, and File its name in there.
	Package, File string
	From, To      string
	// Why is what would be wrong.
	Why string
}

func (m mutant) String() string { return m.Package + "/" + m.File + ": " + m.Why }

// apply is the text of the file with the change in it.
func (m mutant) apply(text string) (string, error) {
	if n := strings.Count(text, m.From); n != 1 || m.From == m.To {
		return "", fmt.Errorf("%s: %q is there %d times, want once, and changed", m, m.From, n)
	}
	return strings.Replace(text, m.From, m.To, 1), nil
}

// Outcomes of a run of tests.
var (
	errSurvived = errors.New("survived")
	errBuild    = errors.New("does not build")
)

// nobody runs the tests where root has started this: the user and group of the name.
const nobody = 65534

func main() {
	jobs := flag.Int("j", 1, "how many at a time")
	pattern := flag.String("run", ".", "regexp of packages, files and reasons")
	limit := flag.Duration("timeout", 2*time.Minute, "how long the tests of a package with a change may take at least; else ten times as long as without")
	flag.Parse()
	picked, err := regexp.Compile(*pattern)
	if err == nil {
		err = run(*jobs, picked, *limit)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(jobs int, picked *regexp.Regexp, limit time.Duration) error {
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	var list []mutant
	packages := map[string]bool{}
	for _, m := range mutants {
		if picked.MatchString(m.String()) {
			list, packages[m.Package] = append(list, m), true
		}
	}
	// A test that fails in any case would kill all.
	limits := map[string]time.Duration{}
	for p := range packages {
		began := time.Now()
		if out, err := test(dir, p, nil, 0); !errors.Is(err, errSurvived) {
			return fmt.Errorf("without a change, the tests of %s fail: %w\n%s", p, err, out)
		}
		limits[p] = max(limit, 10*time.Since(began))
	}
	work := make(chan mutant)
	var mu sync.Mutex
	var survivors []string
	var wait sync.WaitGroup
	for range jobs {
		wait.Go(func() {
			for m := range work {
				began := time.Now()
				out, err := test(dir, m.Package, &m, limits[m.Package])
				mu.Lock()
				word := "killed"
				if err != nil {
					word = err.Error()
					survivors = append(survivors, m.String())
				}
				fmt.Printf("%-8s %5.1fs  %s\n", word, time.Since(began).Seconds(), m)
				if err != nil && !errors.Is(err, errSurvived) {
					fmt.Print(out)
				}
				mu.Unlock()
			}
		})
	}
	for _, m := range list {
		work <- m
	}
	close(work)
	wait.Wait()
	fmt.Printf("%d of %d killed, on %s\n", len(list)-len(survivors), len(list), runtime.GOARCH)
	if survivors != nil {
		return fmt.Errorf("nobody misses:\n%s", strings.Join(survivors, "\n"))
	}
	return nil
}

// test runs the tests of a package, with a change if there is one: nil where they find it out,
// or take longer than the limit; 0 is none.
func test(dir, directory string, m *mutant, limit time.Duration) (out string, err error) {
	dir, err = os.MkdirTemp(dir, "")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "package.test")
	args := []string{"test", "-c", "-o", binary}
	if m != nil {
		overlay, err := m.overlay(dir)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	if b, err := exec.Command("go", append(args, "./"+directory)...).CombinedOutput(); err != nil {
		return string(b), fmt.Errorf("%w: %w", errBuild, err)
	}
	cmd := exec.Command(binary, "-test.failfast", "-test.timeout="+limit.String())
	var b bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = directory, &b, &b
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "CI=", "PODMARK_LAB=")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	err = cmd.Run()
	switch exit := (&exec.ExitError{}); {
	case err == nil:
		return b.String(), errSurvived
	case !errors.As(err, &exit):
		return b.String(), fmt.Errorf("running the tests of %s: %w", directory, err)
	case m == nil:
		return b.String(), err
	}
	return b.String(), nil
}

// overlay writes the changed file and what has the Go command take it.
func (m mutant) overlay(dir string) (path string, err error) {
	file, err := filepath.Abs(filepath.Join(m.Package, m.File))
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text, err := m.apply(string(b))
	if err != nil {
		return "", err
	}
	changed := filepath.Join(dir, m.File)
	list, err := json.Marshal(map[string]map[string]string{"Replace": {file: changed}})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, errors.Join(os.WriteFile(changed, []byte(text), 0o600), os.WriteFile(path, list, 0o600))
}
