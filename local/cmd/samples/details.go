package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"strconv"
	"time"
)

// details tells what a book is: v1 by itself, v2 what a service outside the mesh says of it.
type details struct {
	catalogue string // address of the search for the book; empty: v1
	client    *http.Client
}

type book struct {
	ID        int    `json:"id"`
	Author    string `json:"author"`
	Year      any    `json:"year"` // a number, or the date as the catalogue writes it
	Type      string `json:"type"`
	Pages     int    `json:"pages"`
	Publisher string `json:"publisher"`
	Language  string `json:"language"`
	ISBN10    string `json:"ISBN-10"`
	ISBN13    string `json:"ISBN-13"`
}

func newDetails(env environment) *details {
	d := &details{client: newClient()}
	if env("ENABLE_EXTERNAL_BOOK_SERVICE") == "true" {
		// Unencrypted where a sidecar shall originate TLS.
		scheme := "https"
		if env("DO_NOT_ENCRYPT") == "true" {
			scheme = "http"
		}
		d.catalogue = scheme + "://www.googleapis.com/books/v1/volumes?q=isbn:0486424618"
	}
	return d
}

func (d *details) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, status{"Details is healthy"})
	})
	mux.HandleFunc("GET /details/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			answer(w, http.StatusBadRequest, fault{"please provide numeric product id"})
			return
		}
		b := book{id, "William Shakespeare", 1595, "paperback", 200, "PublisherA", "English", "1234567890", "123-1234567890"}
		if d.catalogue != "" {
			if b, err = d.lookUp(r.Context(), id, onward(r.Header)); err != nil {
				log.Printf("details: %v", err)
				answer(w, http.StatusBadRequest, fault{err.Error()})
				return
			}
		}
		answer(w, http.StatusOK, b)
	})
	return mux
}

// lookUp asks the catalogue for the book.
func (d *details) lookUp(ctx context.Context, id int, header http.Header) (book, error) {
	_, body, err := get(ctx, d.client, d.catalogue, header, 5*time.Second)
	if err != nil {
		return book{}, err
	}
	var found struct {
		Items []struct {
			VolumeInfo struct {
				Authors             []string
				PublishedDate       string
				PrintType           string
				PageCount           int
				Publisher           string
				Language            string
				IndustryIdentifiers []struct{ Type, Identifier string }
			}
		}
	}
	if err := json.Unmarshal(body, &found); err != nil {
		return book{}, fmt.Errorf("read the catalogue's answer: %w", err)
	}
	if len(found.Items) == 0 || len(found.Items[0].VolumeInfo.Authors) == 0 {
		return book{}, errors.New("the catalogue does not have the book")
	}
	v := found.Items[0].VolumeInfo
	b := book{id, v.Authors[0], v.PublishedDate, "unknown", v.PageCount, v.Publisher, "unknown", "", ""}
	if v.PrintType == "BOOK" {
		b.Type = "paperback"
	}
	if v.Language == "en" {
		b.Language = "English"
	}
	for _, i := range v.IndustryIdentifiers {
		switch i.Type {
		case "ISBN_10":
			b.ISBN10 = i.Identifier
		case "ISBN_13":
			b.ISBN13 = i.Identifier
		}
	}
	return b, nil
}
