package main

import (
	"bytes"
	"encoding/json"
)

// operation answers one kind of request. Its answer is encoded as a JSON object.
type operation func(l *link, payload []byte) (answer any, err error)

// named is the part that all arguments have: the name of the operation.
type named struct {
	Op string `json:"op"`
}

// op makes an operation of a function with typed arguments.
func op[A any](f func(l *link, args *A) (any, error)) operation {
	return func(l *link, payload []byte) (any, error) {
		args, err := decode[A](payload)
		if err != nil {
			return nil, err
		}
		return f(l, args)
	}
}

// decode reads a request. Fields it doesn't know are refused, not ignored.
func decode[A any](payload []byte) (*A, error) {
	args := new(A)
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(args); err != nil {
		return nil, protocol("%v", err)
	}
	return args, nil
}

// nothing is the arguments of a request that has none.
type nothing struct{ named }

func ping(*link, *nothing) (any, error) { return nil, nil }
