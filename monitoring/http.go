package monitoring

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler serves /metrics from reg (not at all where reg is nil; in the format of OpenMetrics, with exemplars, if the client asks for it), /livez and /readyz from h, and /status from what recent knows (not at
// all where it is nil). All are read only.
//
// /livez answers 200 as long as the process can answer: a sink, a server or a slot that is away is no reason to be
// killed, because a restart would not bring it back. /readyz answers 200 while this process does its job, streaming or standing by,
// and 503 while a component is failed or the process is starting. A degraded component, a sink that is away for example, leaves it
// at 200; with /readyz?strict that is 503 as well. The body is the Report, which readyz.schema.json describes.
//
// /status answers 200 with the Instance, which status.schema.json describes, whatever the state is.
//
// Another path is 404, and another method than GET and HEAD is 405. Both answers name the paths.
func Handler(reg *prometheus.Registry, h *Health, recent *Recent) http.Handler {
	mux := http.NewServeMux()
	var paths []string
	handle := func(path string, h http.Handler) {
		paths = append(paths, path)
		mux.Handle("GET "+path, h) // HEAD as well
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, fmt.Sprintf("%s answers GET and HEAD only; so do all paths: %s", path, strings.Join(paths, ", ")), http.StatusMethodNotAllowed)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, fmt.Sprintf("nothing is at %q; the paths are %s", r.URL.Path, strings.Join(paths, ", ")), http.StatusNotFound)
	})
	if reg != nil {
		handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg, EnableOpenMetrics: true}))
	}
	handle("/livez", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]Level{"status": LevelOK})
	}))
	handle("/readyz", http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		accepted, err := acceptedLevel(request.URL.RawQuery)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r := h.Report()
		status := http.StatusOK
		if r.Status.badness() > accepted.badness() {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, r)
	}))
	if recent != nil {
		handle("/status", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, recent.Instance()) }))
	}
	return mux
}

// acceptedLevel returns the worst level for which /readyz answers 200. A query that is not understood is an error: a misspelt
// strict would else answer 200 where 503 is expected, and nobody would notice.
func acceptedLevel(query string) (Level, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", fmt.Errorf("the query cannot be read: %w", err)
	}
	level := LevelDegraded
	for name, all := range values {
		if name != "strict" || len(all) != 1 {
			return "", errors.New("the only parameter of /readyz is strict, at most once")
		}
		switch all[0] {
		case "", "true", "1":
			level = LevelOK
		case "false", "0":
		default:
			return "", errors.New("strict is true or false; /readyz?strict means true")
		}
	}
	return level, nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client may be gone; there is nobody else to tell
}
