import pytest
from vision_tasks.data.annotation import Annotation, AnnotationError
from vision_tasks.data.reading import read_all

def test_readers_drop_and_count_or_raise():
    def read(i):
        if i % 2: raise AnnotationError(f"row {i} is bad")
        return Annotation('a.png', (20, 10), [str(i)])
    with pytest.raises(AnnotationError, match="row 1 is bad"): read_all(read, range(5))
    with pytest.warns(UserWarning, match="2 of 5 pictures are left out: row 1 is bad; row 3 is bad"):
        assert [a.labels for a in read_all(read, range(5), 'drop')] == [['0'], ['2'], ['4']]
    with pytest.raises(ValueError, match="'raise' or 'drop', not 'skip'"): read_all(read, [], 'skip')
