package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes of a frame, in bytes. One packet of the link is one frame.
const (
	headerSize   = 16
	frameLimit   = 256 << 10
	payloadLimit = frameLimit - headerSize
)

// frameType says what a frame's payload is.
type frameType uint8

// The frame types of docs/wire.md.
const (
	typeRequest frameType = 1 + iota
	typeResponse
	typeEvent
	typeData
	typeAck
)

// flagFin marks the last data frame of a stream.
const flagFin = 1

// The streams of a channel.
const (
	streamIn  = 0 // towards the guest: stdin, upload
	streamOut = 1 // stdout, terminal, download, records
	streamErr = 2
)

// header is the fixed first part of every frame.
type header struct {
	kind    frameType
	flags   uint8
	stream  uint16
	channel uint32
	offset  uint64
}

// encode writes the header in its wire form.
func (h header) encode() (b [headerSize]byte) {
	b[0] = byte(h.kind)
	b[1] = h.flags
	binary.LittleEndian.PutUint16(b[2:], h.stream)
	binary.LittleEndian.PutUint32(b[4:], h.channel)
	binary.LittleEndian.PutUint64(b[8:], h.offset)
	return b
}

var (
	errShortFrame = errors.New("frame shorter than its header")
	errLongFrame  = errors.New("frame longer than 262144 bytes")
)

// parseFrame splits a packet into header and payload. The payload aliases the packet.
func parseFrame(packet []byte) (header, []byte, error) {
	if len(packet) < headerSize {
		return header{}, nil, errShortFrame
	}
	if len(packet) > frameLimit {
		return header{}, nil, errLongFrame
	}
	h := header{
		kind:    frameType(packet[0]),
		flags:   packet[1],
		stream:  binary.LittleEndian.Uint16(packet[2:]),
		channel: binary.LittleEndian.Uint32(packet[4:]),
		offset:  binary.LittleEndian.Uint64(packet[8:]),
	}
	payload := packet[headerSize:]
	switch h.kind {
	case typeRequest, typeResponse, typeEvent:
		if h.flags != 0 || h.stream != 0 || h.offset != 0 {
			return header{}, nil, fmt.Errorf("type %d with flags %d, stream %d, offset %d", h.kind, h.flags, h.stream, h.offset)
		}
	case typeData:
		if h.flags&^flagFin != 0 {
			return header{}, nil, fmt.Errorf("data with flags %#x", h.flags)
		}
		if h.offset > maxOffset {
			return header{}, nil, fmt.Errorf("data at offset %d", h.offset)
		}
	case typeAck:
		if h.flags != 0 || len(payload) != 4 {
			return header{}, nil, fmt.Errorf("ack with flags %#x and %d bytes", h.flags, len(payload))
		}
		if h.offset > maxOffset {
			return header{}, nil, fmt.Errorf("ack of offset %d", h.offset)
		}
	default:
		return header{}, nil, fmt.Errorf("unknown type %d", h.kind)
	}
	return h, payload, nil
}

// maxOffset keeps sums of offsets and windows far from wrapping.
const maxOffset = 1 << 62
