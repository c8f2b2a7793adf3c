// Package service makes a connector out of a configuration, for the command and for Go services alike.
package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/kafka"
	"github.com/pyairtable-compose/outbox-cdc/sinks/stdout"
)

// Parts are what a connector shares with the process around it. All are required unless they say otherwise.
type Parts struct {
	Logger  *slog.Logger
	Metrics *monitoring.Metrics
	Health  *monitoring.Health
	// Stdout is where a sink of type stdout writes.
	Stdout io.Writer
	// Prepare is called before the first session; it may be nil.
	Prepare func(context.Context) error
}

// Build makes the connector that cfg describes. It connects to nothing. cfg was validated by config.Load.
func Build(cfg config.Config, p Parts) (*connector.Connector, error) {
	d := cfg.Delivery
	c := connector.Config{
		Name: cfg.Name,
		Source: connector.Source{
			DSN: string(cfg.Source.DSN), ReplicationDSN: string(cfg.Source.ReplicationDSN),
			MaxConnections: cfg.Source.MaxConnections,
			Slot:           cfg.Source.Slot, Publication: cfg.Source.Publication,
			Table: cfg.Source.Table, LedgerSchema: cfg.Source.LedgerSchema,
			Columns: decoder.Columns(cfg.Source.Columns),
		},
		Delivery: connector.Delivery{
			BatchSize: d.BatchSize, Lanes: d.Lanes, Timeout: d.Timeout, DrainTimeout: d.DrainTimeout, MaxRetries: d.MaxRetries,
			Retry:       connector.Retry{Initial: d.Retry.Initial, Max: d.Retry.Max},
			MaxInFlight: d.MaxInFlight, MaxInFlightBytes: int(d.MaxInFlightBytes), MaxEventBytes: int(d.MaxEventBytes),
		},
		Metrics: p.Metrics, Health: p.Health, Logger: p.Logger, Prepare: p.Prepare,
	}
	for i, sc := range cfg.Sinks {
		s, err := buildSink(sc, p)
		if err != nil {
			return nil, fmt.Errorf("sinks[%d] (%s): %w", i, sc.Name, err)
		}
		c.Sinks = append(c.Sinks, s)
	}
	return connector.New(c), nil
}

func buildSink(sc config.Sink, p Parts) (connector.Sink, error) {
	s := connector.Sink{Name: sc.Name, Type: sc.Type}
	var err error
	if s.Topic, err = router.ParseTemplate(sc.Topic); err != nil {
		return s, fmt.Errorf("topic: %w", err)
	}
	if s.Key, err = router.ParseTemplate(sc.Key); err != nil {
		return s, fmt.Errorf("key: %w", err)
	}
	description := map[string]any{"topic": sc.Topic, "key": sc.Key} // no secrets
	switch sc.Type {
	case config.SinkKafka:
		k := sc.Kafka
		description["brokers"] = k.Brokers
		kc := kafka.Config{
			Brokers: k.Brokers, ClientID: k.ClientID, Compression: k.Compression, Timestamp: k.Timestamp, Logger: p.Logger,
			SASL: kafka.SASL{Mechanism: k.SASL.Mechanism, Username: k.SASL.Username, Password: string(k.SASL.Password)},
		}
		if kc.TLS, err = tlsConfig(k.TLS); err != nil {
			return s, fmt.Errorf("tls: %w", err)
		}
		s.Open = func() (sinks.Sink, error) { return kafka.New(kc) }
	case config.SinkStdout:
		s.Open = func() (sinks.Sink, error) { return stdout.New(p.Stdout), nil }
	default:
		return s, fmt.Errorf("type %q is not built", sc.Type)
	}
	s.Description, err = json.Marshal(description)
	return s, err
}

// tlsConfig is nil where TLS is off. Certificates are verified unless the configuration says otherwise in so many words.
func tlsConfig(c config.TLS) (*tls.Config, error) {
	if !c.Enabled {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.InsecureSkipVerify} //nolint:gosec // asked for by name
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
