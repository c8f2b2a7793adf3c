package service

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/pyairtable-compose/outbox-cdc/config"
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
func mistakesOfOpening(open opener) (mistakes []config.Mistake) {
	s, err := open()
	if err == nil {
		err = s.Close()
	}
	if err == nil {
		return nil
	}
	for text := range strings.Lines(err.Error()) { // joined errors have a line each
		mistakes = append(mistakes, mistakeOf(strings.TrimSuffix(text, "\n")))
	}
	return mistakes
}

// fieldAtStart matches the beginning of an error of a sink's package about one of its fields: the name of the field, perhaps an
// index, and then a colon or the value.
var fieldAtStart = regexp.MustCompile(`^(placement|headers from metadata|headers|format|secrets|url|the URL|allow_hosts|inbox prefix|nkey seed file)` +
	`(\[\d+\])?( \d+)?(:? |'s )`)

// keyOfField holds the key of the configuration for those fields whose name in errors is another.
var keyOfField = map[string]string{
	"headers from metadata": "headers_from_metadata", "secrets": "secret", "the URL": "url", "inbox prefix": "inbox_prefix", "nkey seed file": "nkey_file",
}

// mistakeOf makes a mistake out of a line of such an error. If the line names a field, the mistake has the path of its key.
func mistakeOf(text string) config.Mistake {
	m := fieldAtStart.FindStringSubmatch(text)
	if m == nil {
		return config.Mistake{Text: text}
	}
	key := m[1]
	if k := keyOfField[key]; k != "" {
		key = k
	}
	if strings.HasPrefix(m[4], ":") {
		text = text[len(m[0]):]
	}
	return config.Mistake{Path: key + m[2], Text: text}
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
	content, err := os.ReadFile(path)
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
