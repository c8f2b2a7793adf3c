package sinks

import "fmt"

// FieldError says that one setting of a sink's configuration is wrong. The constructor of a sink returns one for each wrong setting,
// joined by errors.Join, so that its user can mend all of them at once.
//
// The program that reads the configuration replaces Field by the place where the setting was written: the line and the path in the
// file, the name of a variable, or the field of OutboxServiceConfig.
type FieldError struct {
	// Field is the key that the setting has in the configuration of the sink, such as topic, tls.ca_file or brokers[1].
	Field string
	// Err says what is wrong, and what to write instead. It does not repeat Field, and quotes nothing that may be a secret.
	Err error
}

// FieldErrorf returns a *FieldError. Format and args are those of fmt.Errorf.
func FieldErrorf(field, format string, args ...any) error {
	return &FieldError{Field: field, Err: fmt.Errorf(format, args...)}
}

// Error returns the field, and what is wrong with it.
func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns what is wrong, without the field.
func (e *FieldError) Unwrap() error { return e.Err }
