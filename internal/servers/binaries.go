package servers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// releases are the builds that are downloaded, by major version.
var releases = map[string]embeddedpostgres.PostgresVersion{
	"14": "14.20.0", "15": "15.15.0", "16": "16.11.0", "17": "17.7.0", "18": "18.3.0",
}

const oldestMajor = 14

// installation is the programs of one PostgreSQL.
type installation struct {
	Dir     string // holds initdb and postgres; psql and pg_recvlogical are missing in downloaded builds
	Version string // such as 15.18
	Reason  string // why these were chosen, for people
}

// findInstallation looks for the PostgreSQL of o.Version on this machine, else in the download cache, else it downloads one.
// o.BinDir, when not empty, is the only place that is looked at.
func findInstallation(ctx context.Context, o PostgresOptions) (installation, error) {
	version := o.Version
	if o.BinDir != "" {
		return inspect(ctx, o.BinDir, version, "it was asked for")
	}
	var rejected []error
	for _, place := range localPlaces(ctx) {
		found, err := inspect(ctx, place.dir, version, place.reason)
		if err == nil {
			return found, nil
		}
		rejected = append(rejected, err)
	}
	found, err := download(ctx, version, o.tell)
	if err != nil {
		return installation{}, fmt.Errorf("no PostgreSQL %s: %w; install it (Debian: apt-get install postgresql; macOS: brew install postgresql@18)",
			cmp.Or(version, "14 to 18"), errors.Join(append(rejected, err)...))
	}
	return found, nil
}

type place struct{ dir, reason string }

func localPlaces(ctx context.Context) []place {
	var places []place
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		places = append(places, place{strings.TrimSpace(string(out)), "pg_config names it"})
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",         // Debian
		"/usr/pgsql-*/bin",                  // Red Hat
		"/opt/homebrew/opt/postgresql*/bin", // macOS
		"/usr/local/opt/postgresql*/bin",
	} {
		dirs, _ := filepath.Glob(pattern) // the pattern is well-formed
		slices.Reverse(dirs)              // the newest first
		for _, dir := range dirs {
			places = append(places, place{dir, "it is installed"})
		}
	}
	return places
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// inspect runs the server binary as the user who will run the server, and so finds out both its version and whether
// that user may run it.
func inspect(ctx context.Context, dir, version, reason string) (installation, error) {
	owner, err := serverUser()
	if err != nil {
		return installation{}, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version")
	cmd.Dir = "/"
	cmd.SysProcAttr = childAttributes(owner, syscall.SIGKILL)
	out, err := cmd.Output()
	if err != nil {
		return installation{}, fmt.Errorf("%s: %w", dir, err)
	}
	match := versionPattern.FindStringSubmatch(string(out))
	if match == nil {
		return installation{}, fmt.Errorf("%s: unknown version %q", dir, out)
	}
	major, err := strconv.Atoi(match[2])
	if err != nil || major < oldestMajor || version != "" && version != match[2] {
		return installation{}, fmt.Errorf("%s is version %s", dir, match[1])
	}
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return installation{}, err
	}
	return installation{Dir: dir, Version: match[1], Reason: reason}, nil
}

// download takes a release from the cache, or puts it there. What its library does cannot be told to end: where ctx
// does, it is left alone, and what it then leaves half done is in the cache, where the next download removes it.
func download(ctx context.Context, version string, tell func(string)) (installation, error) {
	if version == "" {
		version = "18"
	}
	release, known := releases[version]
	if !known {
		return installation{}, fmt.Errorf("version %q cannot be downloaded, only %s", version,
			strings.Join(slices.Sorted(maps.Keys(releases)), ", "))
	}
	reason := "it was downloaded before"
	var dir string
	done := make(chan error, 1)
	go func() {
		var err error
		dir, err = cached(filepath.Join("pg", string(release)), func(dir string) error {
			reason = "it was downloaded"
			tell(fmt.Sprintf("downloading PostgreSQL %s (15 MB), once, to %s", release, filepath.Dir(filepath.Dir(dir))))
			return fetch(release, dir)
		})
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return installation{}, fmt.Errorf("download PostgreSQL %s: %w", release, err)
		}
	case <-ctx.Done():
		return installation{}, fmt.Errorf("download PostgreSQL %s: %w", release, context.Cause(ctx))
	}
	return inspect(ctx, filepath.Join(dir, "bin"), version, reason)
}

// fetch downloads and unpacks a release. The library knows the builds of every platform and checks their sums, but it
// offers this only as the first step of starting a server, at a fixed port and not as root. So it is given a data
// directory that it refuses to clear, ".", and stops right after having unpacked.
func fetch(release embeddedpostgres.PostgresVersion, dir string) error {
	archive := filepath.Join(filepath.Dir(dir), "archive")
	err := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(release).
		Port(0).
		CachePath(archive).
		RuntimePath(filepath.Join(archive, "runtime")).
		BinariesPath(dir).
		DataPath(".").
		Logger(io.Discard)).Start()
	if err != nil && strings.HasPrefix(err.Error(), "unable to clean up data directory") {
		return nil
	}
	return cmp.Or(err, errors.New("the library started a server"))
}
