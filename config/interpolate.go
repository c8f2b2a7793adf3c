package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// maxFileBytes bounds what is read from the configuration and from a ${file:…}.
const maxFileBytes = 1 << 20

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand replaces ${VAR}, ${VAR:-default} and ${file:/path} in one scalar, and $$ by $. It works on parsed scalars, so
// that no value can change the structure of the file. Any other $ stands for itself.
func expand(s string, lookup func(string) (string, bool)) (string, error) {
	var out strings.Builder
	var errs []error
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i == len(s)-1 {
			break
		}
		out.WriteString(s[:i])
		s = s[i+1:]
		switch s[0] {
		case '$':
			out.WriteByte('$')
			s = s[1:]
		case '{':
			reference, rest, closed := strings.Cut(s[1:], "}")
			if !closed {
				return "", errors.Join(append(errs, errors.New("${ without its }; write $$ for a $"))...)
			}
			value, err := resolve(reference, lookup)
			if err != nil {
				errs = append(errs, err)
			}
			out.WriteString(value)
			s = rest
		default:
			out.WriteByte('$')
		}
	}
	out.WriteString(s)
	return out.String(), errors.Join(errs...)
}

func resolve(reference string, lookup func(string) (string, bool)) (string, error) {
	if path, ok := strings.CutPrefix(reference, "file:"); ok {
		return readSecret(path)
	}
	name, fallback, hasFallback := strings.Cut(reference, ":-")
	switch {
	case !variableName.MatchString(name):
		return "", errors.New("what stands in ${…} is no reference; write ${VAR}, ${VAR:-default} or ${file:/path}, and $$ for a $")
	case strings.Contains(fallback, "${"):
		return "", fmt.Errorf("the default of ${%s:-…} holds a reference; references do not nest", name)
	}
	value, set := lookup(name)
	switch {
	case hasFallback && value == "":
		return fallback, nil
	case !set:
		return "", fmt.Errorf("the variable %s is not set; set it, or write ${%s:-default}", name, name)
	}
	return value, nil
}

// readSecret gives a file's content without what stands around it by accident, such as the newline that editors add. An empty file is a
// mistake: somebody may be about to write it, and an empty secret would mean to go without one.
func readSecret(path string) (string, error) {
	b, err := readRegular(path)
	if err != nil {
		if pathErr, ok := errors.AsType[*os.PathError](err); ok {
			err = pathErr.Err
		}
		return "", fmt.Errorf("the file of ${file:%s} cannot be read: %w; correct its path, or let this user read it", path, err)
	}
	secret := trim(string(b))
	if secret == "" {
		return "", fmt.Errorf("the file of ${file:%s} is empty; write the secret into it", path)
	}
	return secret, nil
}

// readRegular reads a file of limited size. Devices and pipes are refused: reading one may never end.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.Open(path) //nolint:gosec // whoever writes the configuration says which file has a secret
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %s", path, Bytes(maxFileBytes))
	}
	return b, nil
}
