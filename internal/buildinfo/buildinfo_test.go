package buildinfo

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInfo(t *testing.T) {
	t.Parallel()
	settings := []debug.BuildSetting{
		{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "abc"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}, {Key: "vcs.modified", Value: "true"},
	}
	ours := debug.BuildInfo{Main: debug.Module{Path: module, Version: "v1.2.3+dirty"}, Settings: settings}
	for name, c := range map[string]struct {
		build        debug.BuildInfo
		linker, want Info
	}{
		"nothing is known":              {want: Info{Version: "(devel)"}},
		"the Go command":                {build: ours, want: Info{Version: "v1.2.3+dirty", Commit: "abc", Time: "2026-01-02T03:04:05Z", Modified: true}},
		"the linker, of the same build": {build: ours, linker: Info{Version: "v2", Commit: "abc"}, want: Info{Version: "v2", Commit: "abc", Time: "2026-01-02T03:04:05Z", Modified: true}},
		"the linker, of another commit": {build: ours, linker: Info{Version: "v2", Commit: "def"}, want: Info{Version: "v2", Commit: "def"}},
		"the linker alone":              {linker: Info{Version: "v2", Commit: "def"}, want: Info{Version: "v2", Commit: "def"}},
		"a release": {
			build: debug.BuildInfo{Main: debug.Module{Path: module}}, linker: Info{Version: "v2", Commit: "def", Time: "2026-02-03T04:05:06Z"},
			want: Info{Version: "v2", Commit: "def", Time: "2026-02-03T04:05:06Z"},
		},
		"within a service": {
			build: debug.BuildInfo{
				Main: debug.Module{Path: "example.com/orders", Version: "v9"}, Settings: settings,
				Deps: []*debug.Module{{Path: "example.com/other", Version: "v8"}, {Path: module, Version: "v1.2.3"}},
			},
			want: Info{Version: "v1.2.3"},
		},
	} {
		c.want.Go, c.want.Platform = runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH
		if diff := cmp.Diff(c.want, infoOf(&c.build, c.linker)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got := Read(); got.Version == "" || got.Go != runtime.Version() {
		t.Errorf("this process: %+v", got)
	}
}
