# extension_storage: build, install and test with PGXS.
#
#   make && make install      build and install into the server of PG_CONFIG
#   make install prefix=DIR   install into DIR/share/extension and DIR/lib, as an
#                             image volume has them
#   make installcheck         all tests that need a server, on temporary ones
#   make check-unit           the tests of codec and parsers, which need none
#   make dist                 an archive of the last commit for PGXN
#
# ./dev does all of this without installing anything into the machine's server.

EXTENSION = extension_storage
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" \
	$(srcdir)/$(EXTENSION).control)
# PGXN wants three parts
DISTVERSION = $(shell sed -n 's/^   "version": "\(.*\)",/\1/p' \
	$(srcdir)/META.json)
DATA = $(notdir $(wildcard $(srcdir)/$(EXTENSION)--*.sql))

MODULE_big = extension_storage
OBJS = \
	src/cipher.o \
	src/encoding.o \
	src/entry.o \
	src/extension_storage.o \
	src/fernet.o \
	src/fernet_sql.o \
	src/handover.o \
	src/keylist.o \
	src/keyring.o \
	src/lifecycle.o \
	src/mime.o \
	src/movein.o \
	src/procedure.o \
	src/quota.o \
	src/read.o \
	src/rotation.o \
	src/secrets.o \
	src/statement.o \
	src/storage.o \
	src/token.o
# -isystem: warnings are about our code, not the server's headers
PG_CPPFLAGS = -I$(srcdir)/src -isystem $(shell $(PG_CONFIG) --includedir-server)
PG_CPPFLAGS += -DEXTENSION_VERSION='"$(EXTVERSION)"'
SHLIB_LINK = -luuid

# One topic per file; install goes first, it makes what the others use.
topics = $(sort $(basename $(notdir $(wildcard $(srcdir)/$(1)))))
sql_topics = $(call topics,sql/*.sql)
instance_opts = --no-locale --encoding=UTF8 $(TEMP_CONF)

REGRESS = $(filter install,$(sql_topics)) $(filter-out install,$(sql_topics))
REGRESS_OPTS = --temp-instance=./tmp_check $(instance_opts)
ISOLATION = $(call topics,test/isolation/specs/*.spec)
ISOLATION_OPTS = --temp-instance=./tmp_check_iso $(instance_opts) \
	--load-extension=pgcrypto --load-extension=$(EXTENSION) \
	--inputdir=$(srcdir)/test/isolation
TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl

UNIT_TEST = test/unit/test_fernet
EXTRA_CLEAN = $(UNIT_TEST) $(EXTENSION)-*.zip

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

ifeq ($(origin prefix),command line)
override datadir := $(prefix)/share
override pkglibdir := $(prefix)/lib
endif

headers = $(wildcard $(srcdir)/src/*.h)

$(OBJS) $(OBJS:.o=.bc): $(headers) | $(CURDIR)/src
$(CURDIR)/src:
	$(MKDIR_P) $@
src/extension_storage.o src/extension_storage.bc: $(EXTENSION).control

$(UNIT_TEST): $(UNIT_TEST).c test/unit/ciphers.c src/fernet.c src/keylist.c \
		src/mime.c test/unit/ciphers.h $(headers)
	$(MKDIR_P) $(@D)
	$(CC) $(CPPFLAGS) -DFRONTEND $(CFLAGS) $(filter %.c,$^) $(LDFLAGS) \
		-L$(pkglibdir) -L$(libdir) -lpgcommon -lpgport -o $@

.PHONY: check-unit dist

check-unit: $(UNIT_TEST)
	cd $(srcdir) && '$(CURDIR)/$(UNIT_TEST)'

dist:
	git archive --format=zip --prefix=$(EXTENSION)-$(DISTVERSION)/ \
		--output=$(EXTENSION)-$(DISTVERSION).zip HEAD
