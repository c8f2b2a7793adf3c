package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
)

// dialError says that no connection could be made, or no TLS session on it. So nothing was sent.
type dialError struct{ cause error }

func (e *dialError) Error() string { return e.cause.Error() }
func (e *dialError) Unwrap() error { return e.cause }

var errInternal = errors.New("it has an internal address, to which no request is sent; add its host to allow_hosts if it is meant")

var errNoTLS = errors.New("the server answers there, and not with TLS; correct the port of url, or write http:// and name the host in allow_hosts")

// newTransport makes connections for s. It speaks HTTP/1.1. It uses no proxy, because the guard would not see where a
// proxy connects to.
func newTransport(s *settings, own *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	if !s.allowed {
		dialer.Control = guard
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if own != nil {
		config = own.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = s.url.Hostname()
	}
	if config.ClientSessionCache == nil {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1) // one host
	}
	config.NextProtos = []string{"http/1.1"}

	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
	dialTLS := func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			if _, plain := errors.AsType[tls.RecordHeaderError](err); plain {
				err = errNoTLS
			}
			return nil, &dialError{fmt.Errorf("TLS: %w", err)}
		}
		return secured, nil
	}
	t := &http.Transport{
		DialContext: dial, DialTLSContext: dialTLS,
		DisableCompression:     true, // nobody reads the bodies of answers
		MaxConnsPerHost:        s.connections,
		MaxIdleConnsPerHost:    s.connections,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswer,
		WriteBufferSize:        16 << 10, // large enough to send most requests with one write
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// guard refuses internal addresses. It is called just before a connection is made, with the address that the name was
// resolved to. So it cannot be circumvented by a name, or by a DNS server that gives another answer the second time.
func guard(network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" || isInternal(to.Addr()) {
		return errInternal
	}
	return nil
}

// internal4 holds the IPv4 addresses to which the Internet does not route: those of IANA's special-purpose registry,
// multicast and reserved ones.
var internal4 = prefixes(
	"0.0.0.0/8",       // this host
	"10.0.0.0/8",      // private
	"100.64.0.0/10",   // carriers' NAT, and some clouds' metadata
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local, and the clouds' metadata
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // protocol assignments
	"192.0.2.0/24",    // documentation
	"192.88.99.0/24",  // 6to4 relays
	"192.168.0.0/16",  // private
	"198.18.0.0/15",   // benchmarks
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"224.0.0.0/4",     // multicast
	"240.0.0.0/4",     // reserved, broadcast
)

// global6 holds the IPv6 addresses to which the Internet routes. Loopback, link-local, unique local, multicast, mapped
// and translated (NAT64) addresses are outside of it. internal6 holds the ranges within global6 that are refused all
// the same.
var (
	global6   = netip.MustParsePrefix("2000::/3")
	internal6 = prefixes(
		"2001::/23",     // protocol assignments; among them Teredo, whose addresses contain an IPv4 address
		"2001:db8::/32", // documentation
		"2002::/16",     // 6to4, whose addresses contain an IPv4 address
		"3fff::/20",     // documentation
	)
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// isInternal reports whether an address belongs to a host within somebody's own network.
func isInternal(a netip.Addr) bool {
	denied := internal4
	if !a.Is4() {
		if !global6.Contains(a) { // true also for an address with a zone
			return true
		}
		denied = internal6
	}
	for _, p := range denied {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
