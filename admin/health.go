package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
)

// Probe is a path at which an instance says how it does.
type Probe string

// The probes: docs/health.md says when each of them answers 200.
const (
	ProbeLive   Probe = "/livez"
	ProbeReady  Probe = "/readyz"
	ProbeStrict Probe = "/readyz?strict"
)

// Health is an instance's answer to a probe.
type Health struct {
	OK       bool     // it answered 200
	Status   string   // such as "degraded"
	Troubles []string // the components that are not ok, each with its reason
}

// AskHealth asks the instance on this host whose http.listen is listen.
func AskHealth(ctx context.Context, listen string, probe Probe) (Health, error) {
	address := askable(listen)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+string(probe), http.NoBody)
	if err != nil {
		return Health{}, fmt.Errorf("%s is no address", address)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy: the instance is on this host
	response, err := client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return Health{}, fmt.Errorf("no instance answers at %s: %w", address, err)
	}
	defer response.Body.Close()
	health := Health{OK: response.StatusCode == http.StatusOK, Status: "ok"}
	if !health.OK {
		health.Status = fmt.Sprintf("HTTP status %d", response.StatusCode)
	}
	var body struct {
		Status     string `json:"status"`
		Components map[string]struct {
			Status string `json:"status"`
			Detail string `json:"detail"`
		} `json:"components"`
	}
	if json.NewDecoder(io.LimitReader(response.Body, mostAnswer)).Decode(&body) != nil || body.Status == "" {
		return health, nil // that of /livez, or of another program
	}
	health.Status = body.Status
	for _, name := range slices.Sorted(maps.Keys(body.Components)) {
		if c := body.Components[name]; c.Status != "ok" {
			health.Troubles = append(health.Troubles, fmt.Sprintf("%s is %s: %s", name, c.Status, c.Detail))
		}
	}
	return health, nil
}
