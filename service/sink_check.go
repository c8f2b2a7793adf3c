package service

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/nats-io/nkeys"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// CheckSink is the value for config.Options.CheckSink. It returns what the package of a sink finds wrong with cfg.Sinks[i]. It
// reads the files that the sink names, and connects to nothing.
func CheckSink(cfg config.Config, i int) []config.Mistake {
	if cfg.Sinks[i].Composite != nil {
		return nil
	}
	_, mistakes := newSinkBuilder(cfg, BuildOptions{}).buildSink(cfg.Sinks[i])
	return mistakes
}

// mistakesOfOpening opens and closes a sink, and returns what its package finds wrong with the configuration.
func mistakesOfOpening(open opener) []config.Mistake {
	s, err := open()
	if err == nil {
		err = s.Close()
	}
	if err == nil {
		return nil
	}
	return mistakesOf(err)
}

// mistakesOf makes mistakes out of the error of a constructor of a sink: one for each *sinks.FieldError that it joins, with the field as
// the path, and one without a path for anything else.
func mistakesOf(err error) []config.Mistake {
	wrong, isField := errors.AsType[*sinks.FieldError](err)
	switch joined, isJoined := err.(interface{ Unwrap() []error }); {
	case !isField:
		return []config.Mistake{{Text: err.Error()}}
	case isJoined:
		var mistakes []config.Mistake
		for _, err := range joined.Unwrap() {
			mistakes = append(mistakes, mistakesOf(err)...)
		}
		return mistakes
	case err == error(wrong): //nolint:errorlint // what wraps it is the next case
		return []config.Mistake{{Path: wrong.Field, Text: wrong.Err.Error()}}
	}
	return mistakesOf(errors.Unwrap(err)) // what was put around it says no more than the place does
}

// wrongFile returns the mistake for a key that names a file which cannot be used.
func wrongFile(key string, err error) config.Mistake {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		err = fmt.Errorf("%s cannot be read: %w", pathErr.Path, pathErr.Err)
	}
	return config.Mistake{Path: key, Text: err.Error()}
}

// checkCredentials reads a file of NATS credentials as the client does at each connect, and wipes what it has read. With a file
// that is missing, or that has no seed to sign with, the sink could never connect.
func checkCredentials(path string) []config.Mistake {
	if path == "" {
		return nil
	}
	content, err := os.ReadFile(path) //nolint:gosec // the configuration names it
	if err == nil {
		var pair nkeys.KeyPair
		if pair, err = nkeys.ParseDecoratedNKey(content); err == nil {
			pair.Wipe()
		}
		clear(content)
	}
	if err != nil {
		return []config.Mistake{wrongFile("credentials_file", err)}
	}
	return nil
}

// tlsConfig returns nil if TLS is off. Certificates are verified unless the configuration sets insecure_skip_verify.
func tlsConfig(c config.TLS) (*tls.Config, []config.Mistake) {
	if !c.Enabled {
		return nil, nil
	}
	var mistakes []config.Mistake
	wrong := func(key string, err error) {
		mistakes = append(mistakes, wrongFile("tls."+key, err))
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.InsecureSkipVerify} //nolint:gosec // asked for by name
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		t.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			wrong("ca_file", err)
		case !t.RootCAs.AppendCertsFromPEM(pem):
			wrong("ca_file", fmt.Errorf("%s holds no certificate", c.CAFile))
		}
	}
	if c.CertFile != "" && c.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			wrong("cert_file", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, mistakes
}
