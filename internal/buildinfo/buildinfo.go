// Package buildinfo says which build of outbox-cdc this is: for the command version, and for the metric build_info.
package buildinfo

import (
	"cmp"
	"runtime"
	"runtime/debug"
	"slices"
)

// module is the path of this module. A service that embeds the connector is another module, with a version and a commit of its own.
const module = "github.com/pyairtable-compose/outbox-cdc"

// version, commit and date, of the commit, are set by the linker, as in -ldflags "-X github.com/…/internal/buildinfo.version=v1.2.3". A
// build without these flags takes them from what the Go command has written into the binary.
var version, commit, date string

// Info says which build this is. A field that is not known is empty, except for Version.
type Info struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	// Time is when the commit was made.
	Time string `json:"time,omitempty"`
	// Modified means that the build had changes that were not committed.
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Read returns the Info of this process.
func Read() Info {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		build = &debug.BuildInfo{}
	}
	return infoOf(build, Info{Version: version, Commit: commit, Time: date})
}

// infoOf takes from build what the linker has not set.
func infoOf(build *debug.BuildInfo, linker Info) Info {
	v := Info{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if build.Main.Path == module {
		v.Version = cmp.Or(build.Main.Version, v.Version)
		for _, s := range build.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = s.Value
			case "vcs.time":
				v.Time = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	} else if i := slices.IndexFunc(build.Deps, func(m *debug.Module) bool { return m.Path == module }); i >= 0 {
		v.Version = cmp.Or(build.Deps[i].Version, v.Version) // the settings tell of the service that embeds us
	}
	v.Version = cmp.Or(linker.Version, v.Version)
	if linker.Commit != "" && linker.Commit != v.Commit { // time and modified tell of another commit
		v.Commit, v.Time, v.Modified = linker.Commit, "", false
	}
	v.Time = cmp.Or(linker.Time, v.Time)
	return v
}
