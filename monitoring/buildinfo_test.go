package monitoring

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
)

// The metric says what the command version says.
func TestBuildInfo(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewBuildInfo("p_"))
	v := buildinfo.Read()
	want := `# HELP p_build_info 1; the labels say which build of outbox-cdc this is. An empty commit is not known.
# TYPE p_build_info gauge
p_build_info{commit="` + v.Commit + `",go_version="` + v.Go + `",version="` + v.Version + `"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
