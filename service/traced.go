package service

import (
	"crypto/tls"
	"slices"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/tracing"
)

// systems are the messaging systems of sinks, by type, as OpenTelemetry names them where it does.
var systems = map[string]string{config.SinkRedis: "redis", config.SinkEventBus: "nats"}

// traced returns what spans say of the sink with this name.
func traced(cfg config.Config, name string) tracing.Destination {
	d := tracing.Destination{Sink: name}
	i := slices.IndexFunc(cfg.Sinks, func(s config.Sink) bool { return s.Name == name })
	if i < 0 {
		return d
	}
	s := &cfg.Sinks[i]
	if d.System = systems[s.Type]; d.System == "" {
		d.System = s.Type
	}
	elsewhere := slices.ContainsFunc(cfg.Routes, func(r config.Route) bool { return r.Topic != "" })
	if !elsewhere && s.Webhook == nil && !strings.Contains(s.Topic, "://") { // the path of a webhook may be its secret
		d.Topic, d.IsTemplate = s.Topic, strings.Contains(s.Topic, "{")
	}
	return d
}

// TracingTLS returns how a collector with https is reached. Certificates are verified. The error is a *config.Error.
func TracingTLS(c config.Tracing) (*tls.Config, error) {
	t, mistakes := tlsConfig(config.TLS{Enabled: true, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile})
	for i := range mistakes {
		mistakes[i].Path = "tracing." + strings.TrimPrefix(mistakes[i].Path, "tls.")
	}
	if mistakes != nil {
		return nil, &config.Error{Mistakes: mistakes}
	}
	return t, nil
}
